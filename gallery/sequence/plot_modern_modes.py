"""
Today's modes of sequence parallelism
=====================================

Colossal-AI of today has four modes of sequence parallelism, one argument of its ``HybridParallelPlugin``: split_gather,
ring, all_to_all and ring_attn. Here each of them runs on BERT and on LLaMA, as transformers has these models. You will
see what a rank works on, which modes compute what one process computes, what they cost, and which fail without a word.

This lesson is not about how ring attention works; :doc:`plot_bert_ring` is.
"""

# %%
# Four ways to cut
# ----------------
# One job runs every mode of a model in turn, after the model by itself. Each rank notes the sizes of what its first
# layer works on. This is its log for LLaMA on two ranks, and what the ranks noted:

from handson import launch, show
from handson.show import sequence_modes as modes

MODERN = "sequence_parallel/modern.py MODEL="
llama = launch(MODERN + "llama", ranks=2)
modes.mode_map(llama)

# %%
# **tensor** is tensor parallelism alone: every rank has all tokens between the layers. **split_gather** and **ring**
# cut these by tokens, over the same ranks that cut the weights; inside a layer the whole sequence is gathered, at once
# or piece by piece (Megatron-LM's sequence parallelism). **all_to_all** leaves the weights whole. It cuts the sequence
# everywhere, except that inside attention the ranks trade tokens for heads (DeepSpeed-Ulysses). **ring_attn** would cut
# the sequence in attention too.

# %%
# What runs, whether it is right, what it costs
# ---------------------------------------------
# With all repairs in force. Each mode's loss, and the gradient of every parameter, is compared with one process.

bert = launch(MODERN + "bert", ranks=2, quiet=True)
two = {"BERT": bert, "LLaMA": llama}
modes.mode_table(two)

# %%
# With ``+flash`` LLaMA's attention goes through ``enable_flash_attention=True``. Without it, upstream's layers keep the
# scores of every head in memory, which transformers' own attention (one process, data, tensor) does not: compare the
# peaks.
#
# On four ranks, and together with two pipeline stages, at the small size of a laptop: is it still right?

ON_FOUR = {"ranks": 4, "preset": "laptop", "quiet": True}
CUTS = " MODES=split_gather,ring"
four = {
    "BERT": launch(MODERN + "bert MEASURE=no" + CUTS, **ON_FOUR),
    "BERT, 2 stages": launch(MODERN + "bert MEASURE=no PP=2" + CUTS, **ON_FOUR),
    "LLaMA": launch(MODERN + "llama MEASURE=no" + CUTS + ",all_to_all", **ON_FOUR),
    "LLaMA, 2 stages": launch(
        MODERN + "llama MEASURE=no PP=2" + CUTS + ",all_to_all", **ON_FOUR
    ),
}
modes.mode_table(four)

# %%
# Faults that make no error
# -------------------------
# The tables above are not what the packages do as they come. ``without`` leaves a repair out, and shows what is behind
# it; every one of these runs ended well.

AS_IT_COMES = {"ranks": 2, "preset": "laptop", "quiet": True}
silent = ("rowbias", "bertring", "bertringattn", "flashattn")
bert_comes = launch(MODERN + "bert MEASURE=no", without=silent, **AS_IT_COMES)
CHECK = MODERN + "llama MEASURE=no MODES=ring,all_to_all"
ring_comes = launch(CHECK, without=("ringgather",), **AS_IT_COMES)
mask_comes = launch(CHECK, without=("sdpamask",), **AS_IT_COMES)
modes.fault_table(
    {
        "rowbias": (bert_comes, bert, "split_gather"),
        "bertringattn": (bert_comes, bert, "ring_attn"),
        "ringgather": (ring_comes, llama, "ring"),
        "sdpamask": (mask_comes, llama, "all_to_all"),
    },
    caption="Two ranks without a repair: a run that ends well and trains another model",
)

# %%
# - **rowbias**: a rank adds a bias to its own tokens only, so its gradient is a part of the sum, and nobody adds the
#   parts. The loss is right at first; the ranks' copies of the bias then drift apart.
# - **bertringattn**: the mode passes BERT by, and every rank computes every token. All numbers are right and nothing is
#   gained. It is refused now.
# - **ringgather**: the ring keeps for the backward pass the piece that it sent instead of the one that arrived.
# - **sdpamask**: transformers leaves the causal mask to its attention kernel, which upstream's layer has replaced.
#   Every token sees the ones after it. With padding in the batch there is a mask, and the fault is gone.
#
# Two more speak. BERT's ``ring`` warned and became split_gather (**bertring**), and LLaMA with two stages ended with
# this error in the second, while the first waited (**stagemask**):

import textwrap

broken = launch(
    MODERN + "llama MEASURE=no MODES=split_gather PP=2",
    without=("stagemask",),
    expect_failure=True,
    **ON_FOUR,
)
print(textwrap.fill(broken.error.splitlines()[-1], 84))

# %%
# What cannot be divided is refused before any rank waits for another:

odd = launch(MODERN + "llama HEADS=2 MODES=all_to_all", expect_failure=True, **ON_FOUR)
print(odd.error)

# %%
# What they send
# --------------
# Activations, counted and by a formula: with :math:`L` layers, :math:`P` ranks, and :math:`A` the bytes of one
# activation of the whole batch. Split_gather replaces each all-reduce of tensor parallelism by the reduce-scatter and
# the all-gather that it is made of, so both send the same, but for the ends of the model.

modes.traffic_table(
    two, caption="Bytes of activations that a rank sends in one step, 2 ranks"
)

# %%
# Counted is every message as large as an activation, or as a rank's piece of one. Where all_to_all is over 1×, a
# message of the weights' gradients happens to be just as large, and was counted with them.
#
# All_to_all sends less the more ranks there are. It must, however, all-reduce the gradients of all weights, as data
# parallelism does, and that is in the column "sent" further up.

# %%
# Memory
# ------

show.memory_bars(modes.ways(llama))

# %%
# Split_gather divides what lies between the layers, but upstream keeps for the backward pass a gathered copy of the
# input of each linear layer, where tensor parallelism keeps one for all of them; the paper would gather it again. (They
# are kept behind autograd's back, so they count to the rest of the peak.) Without ``+flash`` the scores come on top.

# %%
# The papers, and this page
# -------------------------

views = modes.ways(llama)
sent = {row["way"]: row["counted"] for row in llama.rows("traffic", rank=0)}
sent["all_to_all"] = sum(
    row["wire_bytes"]
    for row in views["all_to_all"].value("communication", "rows")
    if row["collective"] in ("all_to_all", "all_gather")  # the gradients: all_reduce
)
more = show.relative(sent["split_gather"], sent["tensor"])
a2a = show.relative(sent["all_to_all"], sent["split_gather"])
peak = {
    way: max(row["peak_bytes"] for row in view.rows("memory"))
    for way, view in views.items()
}
smaller = show.relative(peak["split_gather+flash"], peak["tensor"])
megatron = ("Korthikanti et al. 2022", "https://arxiv.org/abs/2205.05198")
ulysses = ("Jacobs et al. 2023", "https://arxiv.org/abs/2309.14509")
claims = [
    ("split_gather sends what tensor sends", "the same", f"{more} of it", megatron),
    ("split_gather keeps less than tensor", "less", f"{smaller} of its peak", megatron),
    (
        "all_to_all: as many bytes if S grows with P",
        "constant",
        f"{a2a}, 2 ranks",
        ulysses,
    ),
]
keys = ("claim", "paper", "measured", "source")
show.paper_table([dict(zip(keys, row, strict=True)) for row in claims])

# %%
# The first differs by embedding and head, which the paper leaves out, the second by the gathered inputs that upstream
# keeps. The third follows from its formula above, which has :math:`P` below; the number is its share of split_gather's.

# %%
# Which to take today
# -------------------
# - At least as many sequences as ranks, and one fits: data parallelism, which sends least.
# - Longer sequences of a model whose weights fit: all_to_all, up to as many ranks as heads.
# - Weights that do not fit: tensor parallelism. Add split_gather where the rows above say that it pays.
# - LLaMA in any of these modes: ``enable_flash_attention=True``.
# - BERT, or more ranks than heads: the ring of :doc:`plot_bert_ring`, or :doc:`plot_longer_sequences`.
# - ring_attn wants the package flash-attn, fp16 or bf16 and a GPU, and was not run here.

# %%
# Exercise
# --------
# LLaMA has 32 layers and eight ranks. How many times fewer bytes of activations does all_to_all send than split_gather?
# Take the formulas of the table, then unfold.

L, P = 32, 8
# sphinx_gallery_start_ignore
ratio = (14 * L + 6) / (8 * L / P + 1)
show.answer(
    f"{ratio:.1f} times: ({14 * L + 6}) to ({8 * L / P + 1:g}), both times (P−1)/P A. "
    "The gradients of the weights come on top: they do not depend on the length, so "
    "the longer the sequence, the less they count."
)
# sphinx_gallery_end_ignore

# %%
# Run it yourself
# ---------------
# In ``tutorial_src/sequence_parallel``. ``HANDSON_WITHOUT=sdpamask`` before it leaves out a repair.

print(llama.command, broken.command, sep="\n")

# %%

show.provenance_table({"2 ranks": llama, "4 ranks": four["LLaMA"]})

# %%
# .. handson-downloads:: sequence_parallel/modern.py sequence_parallel/modern_layout.py
#    sequence_parallel/modern_models.py sequence_parallel/modern_parity.py
#    sequence_parallel/modern_theory.py sequence_parallel/modern_witness.py
#
# Where to go next: :doc:`plot_longer_sequences`. Upstream on
# `sequence parallelism <https://colossalai.org/docs/features/sequence_parallelism>`_. All :doc:`repairs </repairs>`.
