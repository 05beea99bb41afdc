"""What `train.py` trains and how it is divided. Change a line and look, or give KEY=value on the command line."""

# How the ranks are divided. What SEQUENCE_PARALLEL_SIZE x PIPELINE_SIZE leaves over is data parallel:
# 4 ranks with the values below are 2 copies, each with 2 ranks that share every sequence.
SEQUENCE_PARALLEL_SIZE = 2
PIPELINE_SIZE = 1
NUM_MICRO_BATCHES = 4  # a pipeline cuts each copy's batch into this many pieces
ATTENTION = "ring"  # "ring", "ring_recompute", "ring_online", or on one rank "plain"

# The model: a BERT. These sizes fit a laptop.
SEQUENCE_LENGTH = 64
VOCABULARY = 64  # five of these are special: padding, start, separator, mask, unknown word
HIDDEN_SIZE = 64
DEPTH = 4
NUM_HEADS = 4
MLP_RATIO = 4
SENTENCE_ORDER = False  # a second head: are the two segments in their order?
DROPOUT = 0.0  # 0 makes every division train the same model, step by step

# The training. BATCH_SIZE is the global batch: every division sees the same sequences in a step.
BATCH_SIZE = 8
STEPS = 20
OPTIMIZER = "adamw"  # "adamw" or "sgd"
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
SEED = 1024

# Everything is fp32, and TF32 is off, so that one device and many can be compared to the last digits.

# `--check`: this many SGD steps beside the single-process model.
CHECK_STEPS = 5
CHECK_LEARNING_RATE = 0.1

# `--measure`: steps that are thrown away, then steps that are timed.
WARMUP_STEPS = 1
TIMED_STEPS = 3

# On a GPU host (a GPU for each rank) these replace the sizes above. HANDSON_PRESET=laptop keeps the small ones.
GPU = dict(
    SEQUENCE_LENGTH=2048,
    VOCABULARY=2048,
    HIDDEN_SIZE=768,
    DEPTH=12,
    NUM_HEADS=12,
    LEARNING_RATE=1e-4,
    CHECK_LEARNING_RATE=0.01,
    WARMUP_STEPS=3,
    TIMED_STEPS=10,
)
