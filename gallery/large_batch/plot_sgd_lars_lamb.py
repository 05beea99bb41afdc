"""
SGD, LARS and LAMB on small and large batches
=============================================

More GPUs mean a larger batch, a larger batch means fewer steps in an epoch, and fewer steps must be longer ones. LARS
and LAMB choose the length of a step for each layer by itself. You will see what they choose, and whether it helps: five
methods on real digits, from small batches to the whole data as one batch, each at its own best learning rate.

This lesson is about accuracy only; :doc:`plot_larger_batch_saves` is about speed.
"""

# %%
# What LARS and LAMB look at
# --------------------------
# Both compare two lengths in every layer and multiply its learning rate by the quotient, the **trust ratio**. LARS
# takes :math:`\eta\,\lVert w\rVert / (\lVert\nabla\rVert + \beta\lVert w\rVert)`, weight against gradient; LAMB
# :math:`\lVert w\rVert / \lVert u\rVert`, weight against what Adam would do. Here it is for each layer of a small
# network in every step, with all 1024 training images in one batch.

from handson import launch, show
from handson.show import large_batch_plots as plots
from handson.show import large_batch_tables as tables

COMPARE = "large_batch_optimizer/compare.py --config config.py"
comparison = launch(COMPARE, ranks=2, quiet=True)
plots.trust_ratios(comparison)

# %%
# The layers disagree, and they change their minds as training goes on. One learning rate for all of them must suit the
# layer that bears least.

tables.ratio_table(comparison)

# %%
# The experiment
# --------------
# scikit-learn's handwritten digits: 1024 images to train on, 273 to choose the learning rate, 500 to report. A network
# of five layers, without normalisation and with batch norm. Every method has the same epochs, the same number of
# learning rates (each twice the one before), the same seeds, and the same warm-up and decay. **One rule for all**: the
# learning rate with the best mean validation accuracy is kept, and its test accuracy counts.

print(*comparison.log[:2], sep="\n")
plots.accuracy_by_batch(comparison, "plain")

# %%
# The dashed line is what one would do without a search: SGD's best learning rate of the smallest batch, times how much
# larger the batch is, with a warm-up. *LARS, upstream* is Colossal-AI's ``Lars`` as it comes, *LARS* the same with two
# repairs that are explained below. With batch norm the same picture:

plots.accuracy_by_batch(comparison, "batchnorm")

# %%

tables.accuracy_table(comparison)

# %%
# Who wins
# --------
# Seeds scatter, so a difference counts only where it is more than twice its own deviation.

PAIRS = [("lars", "sgd"), ("lamb", "sgd"), ("lars", "lars-upstream")]
tables.verdict_table(comparison, [*PAIRS, ("lars", "adamw"), ("lamb", "adamw")])

# %%
# Two reasons stand behind this table. Without normalisation a gradient passes through every layer's weights, so layers
# differ as in the first picture, and whatever gives each layer its own step has an advantage when steps are few: LARS,
# LAMB, and also AdamW, which does it for each single weight. Where AdamW is level or ahead, the trust ratio adds
# nothing to that. With batch norm a layer's output does not depend on the size of its weights: too long a step makes
# them larger and thereby the next step shorter. SGD finds its own step, and less is left to gain.
#
# How narrow is the choice? The accuracy at every learning rate that was tried:

plots.rate_windows(comparison, "plain")

# %%
# The training itself, at the learning rates chosen, the smallest and the full batch:

plots.losses(comparison, "plain")

# %%
# How far a layer moves
# ---------------------
# The promise of LARS is a bound: with momentum :math:`\mu` no step is longer than :math:`lr\,\eta/(1-\mu)` of the
# layer's own size. LAMB has no momentum outside its ratio, so each of its steps is exactly :math:`lr` of it.

plots.movements(comparison, "batchnorm")

# %%

CAPTION = "The longest step of a layer ÷ its size, and the bound"
show.formula_table(tables.bound_rows(comparison), caption=CAPTION)

# %%
# Upstream's ``Lars`` multiplies its whole momentum, old gradients included, by the trust ratio of the newest gradient.
# A gradient that suddenly shrinks makes that ratio large and throws the old ones far (:doc:`repair larsmomentum
# </repairs>`). It also clamps gradients element by element, so it is not blind to the loss' scale (``larsclamp``). Each
# difference from the papers, measured on a tensor or two:

definitions = launch("large_batch_optimizer/definitions.py", quiet=True)
tables.definition_table(definitions)

# %%
# Is it the same on four ranks?
# -----------------------------
# A large batch is there to be shared. Five steps on four ranks, by Booster and ``TorchDDPPlugin``, beside one process
# with the whole batch, in double precision:

TRAIN = "large_batch_optimizer/train.py --config config.py "
shared = {
    "LARS": launch(TRAIN + "--check --optimizer lars", ranks=4),
    "LAMB": launch(TRAIN + "--check --optimizer lamb", quiet=True, ranks=4),
}
show.parity_table(shared, tolerance=1e-6)

# %%
# The search above trained many copies at once, as one stacked network; its optimizers are checked against the real ones
# on every training that was kept:

print(comparison.log[-1])

# %%
# ZeRO is another matter. It gives each rank a part of every tensor, and the norm of a part is not the norm. LAMB has a
# distributed form that adds the parts up; LARS has none, upstream trains on without a word, and here it is refused:

from textwrap import fill

zero = TRAIN + "--optimizer lars PLUGIN=zero"
refused = launch(zero, expect_failure=True, quiet=True, ranks=4)
print(fill(refused.error, 84))

# %%
# The papers, and this page
# -------------------------
# The papers trained convolutional networks on ImageNet and BERT, with thousands of steps left at their largest batch;
# here are as few steps as epochs. Kept: within one point of SGD at the smallest batch.

show.paper_table(tables.claims(comparison))

# %%
# Exercise
# --------
# LARS with :math:`\mu = 0.9`, on the network without normalisation, at its best learning rate for the full batch: how
# much of its size could a layer move in one step, and how far did it? Take the learning rate from the accuracy table,
# :math:`\eta = 0.001`, and unfold.

# sphinx_gallery_start_ignore
bound, reached = (
    tables.bound_rows(comparison)[1][key] for key in ("expected", "counted")
)
show.answer(
    f"The bound is {100 * bound:.3g} % of its size, the longest step was {100 * reached:.3g} %.",
    "The sum over all past steps is reached only when every gradient points the same way.",
)
# sphinx_gallery_end_ignore

# %%
# Run it yourself
# ---------------
# In ``tutorial_src/large_batch_optimizer``; ``colossalai run`` takes the same arguments as ``torchrun``. ``train.py``
# without ``--check`` trains and says its test accuracy; ``KEY=value`` changes a line of ``config.py``.

print(comparison.command, shared["LARS"].command, sep="\n")

# %%

show.provenance_table({"comparison": comparison, "four ranks": shared["LARS"]})

# %%
# .. handson-downloads:: large_batch_optimizer/compare.py large_batch_optimizer/train.py
#    large_batch_optimizer/config.py large_batch_optimizer/replicas.py large_batch_optimizer/methods.py
#
# Where to go next: :doc:`plot_larger_batch_saves`. The repairs of ``Lars``: :doc:`/repairs`. Upstream's page:
# `distributed optimizers <https://colossalai.org/docs/features/distributed_optimizers>`_.
