"""What `train.py` trains and how it is divided. Change a line and look, or give KEY=value on the command line."""

# How the ranks are divided. What PIPELINE_SIZE x TENSOR_PARALLEL_SIZE leaves over is data parallel:
# 4 ranks with the values below are 2 pipeline stages of 2 tensor-parallel ranks each.
TENSOR_PARALLEL_SIZE = 2
TENSOR_PARALLEL_MODE = "1d"  # "1d", "2d" (a square of ranks), "2.5d" (depth x square), "3d" (a cube)
TENSOR_PARALLEL_DEPTH = 1  # of 2.5d only: how many copies of the square share the batch
PIPELINE_SIZE = 2
NUM_MICRO_BATCHES = 4  # a pipeline cuts each rank's batch into this many pieces

# The model: a vision transformer. These sizes fit a laptop.
IMG_SIZE = 32
PATCH_SIZE = 8
HIDDEN_SIZE = 64
DEPTH = 4
NUM_HEADS = 4
MLP_RATIO = 2
NUM_CLASSES = 10
DROPOUT = 0.0  # 0 makes every division train the same model, step by step
CHECKPOINT = False  # keep only each block's input and compute its inside again in the backward pass

# The training. BATCH_SIZE is the global batch: every division sees the same images in a step.
BATCH_SIZE = 16
STEPS = 20
OPTIMIZER = "adamw"  # "adamw" or "sgd"
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
CLIP_GRAD_NORM = 0.0  # 0 is off
SEED = 1024

# Everything is fp32, and TF32 is off, so that one device and many can be compared to the last digits. Mixed precision
# is no choice here: upstream's legacy engine has fp16 as AMP_TYPE.TORCH, which refuses torch 2
# (`assert torch_version.major == 1`), and AMP_TYPE.NAIVE, which needs CUDA kernels built by a compiler.

# `--check`: this many SGD steps beside the single-process model.
CHECK_STEPS = 5
CHECK_LEARNING_RATE = 0.1

# `--measure`: steps that are thrown away, then steps that are timed.
WARMUP_STEPS = 1
TIMED_STEPS = 3

# On a GPU host (a GPU for each rank) these replace the sizes above. HANDSON_PRESET=laptop keeps the small ones.
GPU = dict(
    IMG_SIZE=224,
    PATCH_SIZE=16,
    HIDDEN_SIZE=1024,
    DEPTH=12,
    NUM_HEADS=16,
    MLP_RATIO=4,
    BATCH_SIZE=128,
    LEARNING_RATE=1e-4,
    CHECK_LEARNING_RATE=0.001,
    WARMUP_STEPS=3,
    TIMED_STEPS=10,
)
