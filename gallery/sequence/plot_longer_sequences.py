"""
Longer sequences, and how fast
==============================

Sequence parallelism is there for sequences that one device cannot hold. How long may a sequence become when two or four
ranks share it, each under the same memory cap? And at lengths that fit anyway, is it faster than sharing the batch or
the weights? You will see the answers to both, found by search and by the clock, and why they are as they are.

This lesson is not about how the ring works, or whether its results are right; :doc:`plot_bert_ring` is.
"""

# %%
# The longest sequence under one cap
# ----------------------------------
# ``longest.py`` trains a BERT on one sequence that all ranks share, and looks for its greatest length: it doubles the
# length until a training step needs more memory than the cap, then halves the interval. A step is forward, backward
# and AdamW; its memory is the peak of the fullest rank. **ring** is Colossal-AI's attention, **ring_recompute** the
# same but computed again in the backward pass, **ring_online** our own over the same ring, which holds one block of
# scores at a time. **tensor** shares out heads and MLPs instead of tokens; on one rank it is the plain model.

from handson import launch, show
from handson.show import sequence_length as length
from handson.show import sequence_speed as speed

LONGEST = "sequence_parallel/longest.py"
small = [launch(LONGEST, ranks=n, preset="laptop", quiet=n < 4) for n in (1, 2, 4)]
large = [launch(LONGEST, ranks=n, quiet=True) for n in (1, 2, 4)]
length.longest_plot(small + large)

# %%
# That was the log of four ranks on the CPU, where live tensors are counted. With a GPU for each rank, ``large`` is
# another search, at a GPU's size and by the CUDA allocator's count; such runs have a panel and rows of their own.
# Without, it is the same again, and is shown once.

CAPTION = "The longest sequence, and how many times that of one rank"
length.longest_table(small + large, caption=CAPTION)

# %%
# Why the ring grows like √P
# --------------------------
# Upstream's ring keeps each layer's scores: :math:`S/P` queries by all :math:`S` keys. Where they are most of the
# memory, a cap :math:`M` means :math:`S^2/P \le M`, so :math:`S \sim \sqrt{P}`. What is not scores, :math:`S/P` numbers
# of many kinds, makes it a little better. Recomputing keeps no scores, and the sequence is longer on any number of
# ranks. But while one layer is computed again its scores are all there, so in the end it is :math:`\sqrt{P}` once more.
# Only ring_online never has more than :math:`S/P` by :math:`S/P` of them: :math:`S \sim P`. Tensor parallelism divides
# the scores too, by heads, but keeps what lies between its matrices whole; and it ends at as many ranks as heads.
#
# The bytes saved for the backward pass follow from the sizes: :math:`L` layers, :math:`B` sequences, :math:`n` heads,
# hidden size :math:`h`, four bytes a number. The expected value includes embedding, heads and norms.

CAPTION = "Saved for the backward pass at the longest length"
length.activations_table(small + large, caption=CAPTION)

# %%
# What does not shrink
# --------------------
# The same step at one short length. Saved activations are divided by the number of ranks; weights, gradients and
# AdamW's states are whole on every rank, with a table of positions that grows with the sequence; and the peak has,
# besides, the blocks of K and V under way and whatever a layer needs while it is computed.

(where, by_ranks), *_ = length.grouped(small)
length.length_parts(by_ranks, ["ring", "ring_online"])

# %%

CAPTION = f"What shrinks with the ranks ({where})"
length.fixed_table(by_ranks, "ring_online", caption=CAPTION)

# %%
# At the longest length the same parts look like this. With ring, saved scores fill the cap; with ring_recompute, the
# scores of the one layer that is being computed.

ALL = ["ring", "ring_recompute", "ring_online"]
length.length_parts(by_ranks, ALL, where="longest")

# %%
# Is it faster?
# -------------
# ``speed.py`` gives every way the same global batch and the same ranks. **data** shares the sequences out, **tensor**
# the heads and MLPs (Megatron-LM's cut), **ring** and **ring_online** the tokens.

SPEED = "sequence_parallel/speed.py"
timed = [launch(SPEED, ranks=n, quiet=n != 2) for n in (1, 2, 4)]
timed += [launch(SPEED, ranks=n, preset="laptop", quiet=True) for n in (1, 2, 4)]
speed.speed_plot(timed)

# %%
# Where a length is missing, what it keeps for the backward pass would not fit, and the table says how much that is.

CAPTION = "One training step of the same global batch"
speed.speed_table(timed, caption=CAPTION)

# %%
# Why sequence parallelism does not win, and when it does
# -------------------------------------------------------
# Data parallelism sends nothing but gradients, however long the sequence is: as long as there are as many sequences as
# ranks, and one of them fits, it has least to do beside computing. Sequence parallelism sends the same gradients and K
# and V besides, in every layer; tensor parallelism sends activations, and no gradients. Here is where the time goes:

speed.split_table(timed, caption="Where a step's time goes")

# %%
# Where ring_online is the fastest all the same, look at one rank: there it is ahead of plain attention already. Its
# small blocks of scores suit the caches; that part is not gained by sharing.
#
# So take sequence parallelism when a sequence does not fit on one rank, or when there are fewer sequences than ranks;
# else, on GPUs, share out the batch.

# %%
# The paper, and this page
# ------------------------
# The paper compares with tensor parallelism on up to 64 P100. These numbers are its abstract's; those of batch size and
# of sparse attention have no counterpart here.

title, group = length.grouped(small + large)[0]
most = max(group)
lengths = {
    ranks: length.longest(run) for ranks, run in group.items() if ranks in (1, most)
}
online = show.relative(lengths[most]["ring_online"], lengths[1]["ring_online"])
ring = show.relative(lengths[most]["ring"], lengths[most]["tensor"])
li = ("Li et al. 2021", "https://arxiv.org/abs/2105.13120")
liu = ("Liu et al. 2023", "https://arxiv.org/abs/2310.01889")
claims = [
    ("longer sequences than tensor parallelism", "3.0×, 64 ranks", f"ring {ring}", li),
    ("larger batches than tensor parallelism", "13.7×, 64 ranks", "not measured", li),
    ("longer with sparse attention", "27×, 114K tokens", "not measured", li),
    ("length grows with the ranks", "× P", f"ring_online {online}", liu),
]
keys = ("claim", "paper", "measured", "source")
CAPTION = f"The papers, and this page: {most} ranks, {title}"
show.paper_table([dict(zip(keys, row, strict=True)) for row in claims], caption=CAPTION)

# %%
# Beside tensor parallelism upstream's ring gains little on few ranks, since both divide the scores. But tensor
# parallelism ends at as many ranks as heads, and the paper's 64 ranks are beyond that.

# %%
# Exercise
# --------
# From the table of the longest sequences: how long may the sequence of ring and of ring_online be on 16 ranks under the
# same cap? Continue by √P and by P from the largest number of ranks, then unfold.

known, more = lengths[most], 16 / most
# sphinx_gallery_start_ignore
show.answer(
    f"ring: about {known['ring'] * more**0.5:,.0f} tokens, ring_online: about "
    f"{known['ring_online'] * more:,.0f}, less what the table of positions takes.",
    "The first needs four times the ranks for twice the length.",
)
# sphinx_gallery_end_ignore

# %%
# Run it yourself
# ---------------
# In ``tutorial_src/sequence_parallel``. ``WAYS=ring_online CAP_MIB=64`` searches one way under another cap;
# ``WAYS=data,ring LENGTHS=128,256`` times two ways.

print(small[-1].command, timed[1].command, sep="\n")

# %%

show.provenance_table({"longest": large[1], "speed": timed[1]})

# %%
# .. handson-downloads:: sequence_parallel/longest.py sequence_parallel/speed.py
#    sequence_parallel/length_step.py sequence_parallel/length_theory.py sequence_parallel/tensor_cut.py
#    sequence_parallel/attention.py sequence_parallel/online.py
#
# Where to go next: :doc:`plot_modern_modes`. The paper of the online softmax over a ring:
# `Liu et al. 2023 <https://arxiv.org/abs/2310.01889>`_.
