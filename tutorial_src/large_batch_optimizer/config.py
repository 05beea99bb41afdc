"""What `train.py` trains and `compare.py` compares. Change a line and look, or give KEY=value on the command line."""

# The optimizer (`--optimizer` says the same), and how the ranks share the work.
OPTIMIZER = "lars"  # "sgd", "lars", "lamb" or "adamw"
PLUGIN = "ddp"  # "ddp": every rank holds everything; "zero": ZeRO, each rank holds a part of the optimizer's states

# The network: a multilayer perceptron on scikit-learn's handwritten digits, 8 x 8 pixels, 10 classes.
NETWORK = "plain"  # "plain": without normalisation; "batchnorm": with batch norm after every hidden layer
WIDTH = 64
LAYERS = 5

# The training. BATCH_SIZE is the global batch; 1024 images are the whole training split.
BATCH_SIZE = 1024
EPOCHS = 20
WARMUP = 0.1  # the share of the steps in which the learning rate rises; after it falls along half a cosine
LEARNING_RATE = None  # None: the optimizer's own, of the next line
LEARNING_RATES = dict(sgd=0.32, lars=64.0, lamb=0.128, adamw=0.016)  # for the plain network and the full batch
MOMENTUM = 0.9  # of SGD and LARS
WEIGHT_DECAY = 1e-4  # of SGD and LARS, as a penalty
DECOUPLED_WEIGHT_DECAY = 0.01  # of LAMB and AdamW, beside the adapted gradient
TRUST_COEFFICIENT = 1e-3  # LARS' eta: a layer moves by up to about eta x the learning rate, as a share of its size
SEED = 1024

# `--check`: this many steps beside one process.
CHECK_STEPS = 5

# `compare.py`: every method at every batch gets POINTS learning rates, each twice the one before, and SEEDS seeds of
# each; the learning rate with the best validation accuracy is kept. TARGET is the accuracy that is waited for.
BATCHES = [64, 256, 1024]
POINTS = 6
LOWEST = dict(sgd=0.04, lars=4.0, lamb=0.016, adamw=0.002)
SEEDS = 3
TARGET = 0.9

# `-s`: synthetic images for a residual network of bottleneck blocks, to measure images per second and nothing else.
IMAGE_SIZE = 32
BLOCKS = [1, 1]  # of each stage; every further stage is half as high and twice as wide
STEM_WIDTH = 16
CLASSES = 10
PRECISION = "fp32"  # "fp32", or "bf16": mixed precision by torch.autocast
IMAGES_PER_RANK = 32
WARMUP_STEPS = 2  # steps that are thrown away, then steps that are timed
TIMED_STEPS = 5
# `-s --sweep`: from so many images a rank, doubling, to so many.
SWEEP = [2, 128]

# On a GPU host (a GPU for each rank) these replace the values above. HANDSON_PRESET=laptop keeps the small ones.
GPU = dict(
    BATCHES=[64, 128, 256, 512, 1024],
    POINTS=8,
    LOWEST=dict(sgd=0.01, lars=2.0, lamb=0.004, adamw=0.0005),
    SEEDS=5,
    IMAGE_SIZE=224,
    BLOCKS=[3, 4, 6, 3],  # with STEM_WIDTH 64 and 1000 classes: ResNet-50
    STEM_WIDTH=64,
    CLASSES=1000,
    PRECISION="bf16",
    IMAGES_PER_RANK=256,
    WARMUP_STEPS=3,
    TIMED_STEPS=8,
    SWEEP=[4, 2048],
)
