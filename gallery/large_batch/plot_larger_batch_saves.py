"""
What a larger batch saves
=========================

A device that gets few images at a time spends most of a step on other things. This lesson times steps at growing
batches on one, two and four ranks, finds from where on a device is full, counts what the ranks send each other, and
then asks the question that matters: how long until a given accuracy, when the larger batch also needs more epochs?

It does not ask how accurate a large batch can be at all; that is :doc:`plot_sgd_lars_lamb`.
"""

# %%
# Images per second
# -----------------
# A residual network, on random images with random labels. There is nothing to learn in them, so this measures speed and
# nothing else; it is what the tutorial's original lesson trains on. The batch doubles until a cap or until the next one
# would not fit into memory.

from handson import launch, show
from handson.show import large_batch_speed as speed

TRAIN = "large_batch_optimizer/train.py --config config.py "
SWEEP = TRAIN + "-s --sweep"
runs = {
    "1 rank": launch(SWEEP, ranks=1),
    "2 ranks": launch(SWEEP, ranks=2, quiet=True),
    "4 ranks": launch(SWEEP, ranks=4, quiet=True),
}
speed.throughput(runs)

# %%
# That was the log of one rank. At the left of the picture twice the images cost little more time, give or take what the
# host adds to a step, which is mostly fixed cost: starting kernels, updating weights, and between ranks averaging
# gradients and batch norm's statistics. At the ring the device is **full**, unless the cap came first: from there a
# larger batch saves little more, it only takes memory. Runs on different hardware, or at different sizes, have axes of
# their own.

speed.full_table(runs)

# %%
# What the ranks send
# -------------------
# Data-parallel ranks average their gradients once a step, and gradients are as large as the network, whatever the
# batch. So a larger batch divides that cost among more images. From the ring all-reduce's formula, and counted; what is
# over 1× are the gradients of batch norm's statistics, which ``TorchDDPPlugin`` takes over all ranks.

CAPTION = "Bytes that each rank sends to add up gradients, in one step"
show.formula_table(speed.sent_rows(runs), caption=CAPTION)

# %%
# The optimizer's own share
# -------------------------
# LARS and LAMB go through the tensors one by one and take two norms of each: many small operations. Upstream's ``Lars``
# and ``Lamb`` also wait until the host has read each norm; the repaired ``Lars`` leaves it on the device, so on a GPU
# its two rows differ by the waiting: by little where starting so many operations takes longer than computing them. SGD
# and AdamW are PyTorch's, which on a GPU update many tensors by one kernel. This too is a cost of each step, not of
# each image.

speed.update_table({"1 rank": runs["1 rank"]})

# %%
# Time to a fixed accuracy
# ------------------------
# Speed alone is not what one wants. The comparison of :doc:`plot_sgd_lars_lamb` timed every step of the small networks
# that it trained on digits; here is the time until a fixed share of the validation images is right. It is another
# network than above, so small that a GPU is never full with it.

COMPARE = "large_batch_optimizer/compare.py --config config.py"
comparison = launch(COMPARE, ranks=2, quiet=True)
speed.time_to_target(comparison)

# %%

speed.target_table(comparison, "plain")

# %%

speed.target_table(comparison, "batchnorm")

# %%
# Two things pull in opposite directions. A larger batch takes fewer steps in an epoch, and while the device is not full
# a step takes little longer; but it takes more epochs, and a step that is too long for a layer may never arrive. Where
# a method's steps grow as fast as their number shrinks, nothing is saved.

# %%
# The same training, shared
# -------------------------
# All of this is worth something only if ranks that share a batch train what one would. Five steps in double precision:

shared = {"LARS on 4": launch(TRAIN + "--check --optimizer lars", ranks=4, quiet=True)}
show.parity_table(shared, tolerance=1e-6)

# %%
# The papers, and this page
# -------------------------

show.paper_table(speed.claims(runs, comparison))

# %%
# The papers add devices as the batch grows. The last two rows grow the batch on one device, from the smallest to the
# full one.

# %%
# Exercise
# --------
# Fit :math:`t(b) = a + c\,b` to one rank's sweep: :math:`a` is what a step costs without any image, :math:`c` what an
# image costs. At which batch is half of the step fixed cost? Guess from the picture, then unfold.

from numpy import polyfit

rows = runs["1 rank"].rows("throughput")
sizes = [row["images_per_rank"] for row in rows]
per_image, fixed = polyfit(sizes, [row["median_ms"] for row in rows], 1)
# sphinx_gallery_start_ignore
show.answer(
    f"a = {show.quantity(fixed, 'ms')}, c = {show.quantity(per_image, 'ms')} an image: "
    f"half at {fixed / per_image:.3g} images.",
    "Nine times that many images would reach 90 % of 1 ÷ c images a second, if the line were exact: "
    "its own limit, which no batch reaches.",
)
# sphinx_gallery_end_ignore

# %%
# Run it yourself
# ---------------
# In ``tutorial_src/large_batch_optimizer``. The tutorial's own command times one batch; ``--sweep`` grows it.

print("colossalai run --nproc_per_node 4 train.py --config config.py -s")
print(runs["1 rank"].command)

# %%

show.provenance_table({"sweep": runs["1 rank"], "time to accuracy": comparison})

# %%
# .. handson-downloads:: large_batch_optimizer/train.py large_batch_optimizer/config.py
#    large_batch_optimizer/throughput.py large_batch_optimizer/networks.py
#
# Where to go next: :doc:`/lessons/multi_dimensional/plot_data_and_pipeline` shows where the time of a data-parallel
# step goes.
