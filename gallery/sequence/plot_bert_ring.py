"""
BERT with ring self-attention
=============================

A transformer works token by token, except in self-attention, where each token looks at all others. So a long sequence
can be shared among ranks if keys and values travel. You will see how they travel, check that outputs, gradients and
losses are those of plain attention on one device, and find why upstream's loss doubles with two ranks.

This lesson is about one ring of ranks; :doc:`plot_data_pipeline_sequence` adds copies and pipelines.
"""

# %%
# How K and V travel
# ------------------
# Each of :math:`P` ranks holds one piece of the sequence: :math:`S/P` tokens with their queries, keys and values. It
# keeps its queries and passes keys and values to its neighbour; after :math:`P-1` hops they have been everywhere.

from handson import launch, show
from handson.repairs import legacy_sequence
from handson.show import sequence_plots, sequence_tables

COMPARE = "sequence_parallel/compare_attention.py config.py SEQUENCE_LENGTH=64 "
COMPARE += "VOCABULARY=64 HIDDEN_SIZE=64 DEPTH=4 NUM_HEADS=4"
four = launch(COMPARE, ranks=4, quiet=True)
sequence_plots.ring_travel(four)

# %%
# That is what four processes really passed on. On the right, the scores of all queries with all keys: the number says
# at which hop a block could be computed. A row belongs to one rank, so its softmax needs no one else.
#
# Colossal-AI does it in two rounds: the keys travel, the whole row of scores :math:`[S/P, S]` is stored, softmax, then
# the values travel. Beside it we run the same layer recomputed in the backward pass, and a ring of our own that takes
# up one block :math:`[S/P, S/P]` at a time by an *online softmax* and forgets it.

# %%
# Is it plain attention?
# ----------------------
# Every rank also computes the whole sequence with plain attention and compares. Two faults of upstream's layer show:
# its scores are divided by the root of the *hidden size* instead of the head's, and its backward pass divides the
# gradients of q, k and v by :math:`P`. With both repaired, every kind is plain attention.

rings = [launch(COMPARE, ranks=2, quiet=True), four]
sequence_tables.compared_table(rings)

# %%
# Training
# --------
# The model reads two segments that say the same in two made-up languages, and fills in masked words. The translation
# of a masked word lies half a sequence away, on another rank. First the check: five steps of SGD in fp32 on the same
# batch, beside plain BERT on one device; the learning rates and sizes are those of ``config.py``.

TRAIN = "sequence_parallel/train.py --config config.py -s --check --measure "
SP = TRAIN + "SEQUENCE_PARALLEL_SIZE="
laptop = {"preset": "laptop", "quiet": True}
small = {f"SP {n}": launch(f"{SP}{n}", ranks=n, **laptop) for n in (1, 2, 4)}
show.loss_curves(small)

# %%
# Beside them, where a host with a GPU for each rank made this page, the same at the larger sizes over NCCL:

best = {f"SP {n}": launch(f"{SP}{n}", ranks=n, quiet=True) for n in (1, 2)}
checked = {f"{name}, {run.preset} preset": run for name, run in small.items()}
checked |= {f"{name}, {run.preset} preset": run for name, run in best.items()}
show.parity_table(checked)

# %%
# Upstream's loss doubles
# -----------------------
# A reader of upstream's example `reported <https://github.com/hpcaitech/ColossalAI-Examples/issues/155>`_ a loss of
# 6.55 on one rank and 13.04 on two, after the same 2330 steps. Here is training on two ranks with upstream's
# arithmetic, beside the repaired one:

WITHOUT = ("losssum", "lossmean", "ringgrad", "scale")
fault = {"ranks": 2, "expect_failure": True, **laptop}
upstream = launch(f"{SP}2", without=WITHOUT, **fault)
show.loss_curves({"repaired": small["SP 2"], "as upstream has it": upstream})

# %%
# Four faults are in it, and only one shows in the curve. Leave out one repair at a time:

each = {name: launch(f"{SP}2", without=(name,), **fault) for name in WITHOUT}
sequence_tables.faults_table(
    {**each, "all four": upstream, "none": small["SP 2"]}, legacy_sequence.REPAIRS
)

# %%
# **losssum** is what the reader saw: each rank has the mean over its own masked tokens, the means are added up and not
# divided. The weights do not notice. **lossmean** is quieter: padding lies at the end, so ranks have unequally many
# tokens to predict, and a mean of means weighs them wrongly. **ringgrad** and **scale** train another model. Under
# Adam, which takes no notice of a gradient's length, it still learns, and no error says anything.

# %%
# What it learns needs the other rank
# -----------------------------------
# Two ranks, one segment each. A rank by itself could do no better than to guess by how common a word is, which costs
# the entropy of the words. Falling below that line takes the other segment. This is AdamW, a new batch in each step.

from math import log

LEARN = "sequence_parallel/train.py --config config.py -s DEPTH=1 STEPS=200 "
LEARN += "SEQUENCE_LENGTH=32 VOCABULARY=32 BATCH_SIZE=32 LEARNING_RATE=0.005"
learned = launch(LEARN, ranks=2, **laptop)
common = [1 / (k + 1) for k in range(32 - 5)]
share = [c / sum(common) for c in common]
guessing = -sum(p * log(p) for p in share)
sequence_plots.learning(learned, guessing, "guessing by frequency")

# %%
# What travels, in bytes
# ----------------------
# Of ``b`` sequences and hidden size ``h`` a rank passes on K and V once forward and once backward, and upstream's ring
# all-reduces their gradients. Then all ``G`` ranks average the gradients of their ``W`` parameters. All is counted at
# the operators of ``torch.distributed``; laptop and gpu say which sizes of ``config.py`` a run took.

two = best["SP 2"]
runs = {f"SP 2, {two.preset}": two, "SP 4, laptop": small["SP 4"]}
show.formula_table(
    sequence_tables.formula_rows(runs, "sent"),
    caption="Bytes that rank 0 sends in a training step",
)

# %%
# The paper, and this page
# ------------------------
# Ring self-attention's paper counts numbers for a layer, in its letters: :math:`B` sequences of :math:`L` tokens on
# :math:`N` ranks, :math:`Z` heads of :math:`A` numbers.

run = small["SP 4"]
sent = [
    row["counted"]
    for row in run.rows("formula", rank=0)
    if row["about"] == "sent" and row["axis"] == "sequence"
]
(z,) = run.rows("sizes", rank=0)
numbers = z["b"] * z["S"] // z["P"] * z["h"]  # B (L/N) Z A
factor = sum(sent) / 4 / z["layers"] / numbers  # fp32: 4 bytes a number
source = ("Li et al. 2021", "https://arxiv.org/abs/2105.13120")
measured = f"{factor:.3g} B Z (L/N) A with N = 4, which is {factor / 3:.3g} (N − 1)"
claim = {"claim": "a layer sends", "paper": "8 (N − 1) B Z (L/N) A"}
show.paper_table([claim | {"measured": measured, "source": source}])

# %%
# A ring that cannot be
# ---------------------
# Sequences are shared equally, or not at all:

uneven = TRAIN + "SEQUENCE_PARALLEL_SIZE=3"
refused = launch(uneven, ranks=3, expect_failure=True, **laptop)
print(refused.error)

# %%
# Exercise
# --------
# Our online ring sends K and V together forward, and in the backward pass again with their gradients one hop behind
# them. How much does it send for a layer, and how does that compare with upstream's ring? Decide, then unfold.

online = launch(f"{SP}2 ATTENTION=ring_online", ranks=2, **laptop)
# sphinx_gallery_start_ignore
totals = {
    name: sum(
        row["counted"]
        for row in run.rows("formula", rank=0)
        if row["about"] == "sent" and row["axis"] == "sequence"
    )
    for name, run in {"upstream": small["SP 2"], "online": online}.items()
}
show.answer(
    "K and V take P − 1 hops forward and P − 1 backward, their gradients P − 1, the last "
    "one home: 6 (P − 1)/P b S h numbers, against 8 (P − 1)/P b S h.",
    f"Counted on two ranks: {show.quantity(totals['online'], 'B')} against "
    f"{show.quantity(totals['upstream'], 'B')} a step, "
    f"{show.relative(totals['online'], totals['upstream'])}.",
)
# sphinx_gallery_end_ignore

# %%
# Run it yourself
# ---------------
# In ``tutorial_src/sequence_parallel``; ``colossalai run`` takes the same arguments as ``torchrun``. Without ``--check
# --measure`` the script trains, and without ``-s`` on a book. With more ranks than the host has GPUs, start with
# ``CUDA_VISIBLE_DEVICES=`` so that all of them use the CPU.

print(two.command, four.command, sep="\n")

# %%

show.provenance_table({"SP 2": two, "SP 4": small["SP 4"], "ring of 4": four})

# %%
# .. handson-downloads:: sequence_parallel/train.py sequence_parallel/config.py sequence_parallel/attention.py
#    sequence_parallel/online.py sequence_parallel/ring.py sequence_parallel/bert.py
#    sequence_parallel/compare_attention.py
#
# Where to go next: :doc:`plot_data_pipeline_sequence`. The online ring follows Ring Attention `(Liu et al. 2023)
# <https://arxiv.org/abs/2310.01889>`_. All repairs: :doc:`/repairs`.
