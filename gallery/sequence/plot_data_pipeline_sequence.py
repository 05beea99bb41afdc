"""
Data, pipeline and sequence parallelism together
================================================

Rings share sequences, copies share the batch, pipeline stages share the layers. Here ranks are divided along all
three, by lines of ``config.py`` alone. You will see which tokens and layers a rank has, check that every mixture trains
the same model, and work out what a rank keeps and sends before it is counted.

This lesson takes the ring as known; :doc:`plot_bert_ring` explains it.
"""

# %%
# The tutorial's default
# ----------------------
# ``config.py`` asks for rings of two ranks and no pipeline. What is left over is data parallel: four ranks are two
# copies of a ring. Each copy takes half of the sequences, each rank of it half of their tokens.

from handson import launch, show
from handson.show import sequence_plots, sequence_tables

CHECK = "sequence_parallel/train.py --config config.py -s --check "
TRAIN = CHECK + "--measure "
small = {"preset": "laptop", "quiet": True}
default = launch(TRAIN, ranks=4, **small)
show.mesh_map(default)

# %%

print(*default.log, sep="\n")
default

# %%
# One line of ``config.py``
# -------------------------
# The tutorial's next step is a pipeline of two stages:

show.config_change("sequence_parallel/config.py", "PIPELINE_SIZE=2")

# %%
# On four ranks that leaves one copy: two rings, one for the first half of the layers and one for the second. On eight
# ranks there are two copies again, and all three axes:

PIPELINE = "PIPELINE_SIZE=2"
stages = launch(TRAIN + PIPELINE, ranks=4, **small)
three = launch(TRAIN + PIPELINE, ranks=8, **small)
show.mesh_map(three)

# %%

sequence_tables.places_table(three)

# %%

runs = {"dp2 × sp2": default, "pp2 × sp2": stages, "dp2 × pp2 × sp2": three}
sequence_tables.division_table(runs)

# %%
# Still the same model
# --------------------
# Five steps of SGD beside plain BERT on one device, the same global batch. A second head can be switched on, which
# tells whether the two segments are in their order; only the rank that has the first token computes it.

ORDER = "SENTENCE_ORDER=True"
order = {
    "dp2 × sp2, order": launch(f"{CHECK} {ORDER}", ranks=4, **small),
    "dp2 × pp2 × sp2, order": launch(f"{CHECK} {PIPELINE} {ORDER}", ranks=8, **small),
}
show.parity_table({**runs, **order})

# %%

show.loss_curves(runs)

# %%
# That took three more repairs. The first and the last stage share the word embedding, and upstream adds their gradients
# up only if the configuration names no gradient handler, which sequence parallelism must name. Without that repair the
# two copies drift apart, silently:

tied = launch(
    CHECK + PIPELINE, without=("tied",), ranks=4, expect_failure=True, **small
)
show.parity_table({"repaired": stages, "tied left out": tied}, caption="Shared weights")

# %%
# And with copies beside stages, upstream averages gradients over the wrong ranks: it takes the first *copy's* ranks for
# those of the first *stage*. Two stages have different parameters, so it ends at once:

mixed = launch(
    CHECK + PIPELINE, without=("seqdp",), ranks=8, expect_failure=True, **small
)
print(*[line for line in mixed.error.split(". ") if "data size" in line], sep="\n")

# %%
# What a rank keeps
# -----------------
# Let ``b`` sequences of :math:`S` tokens be shared by :math:`P` ranks; hidden size ``h``, ``n`` heads, an MLP ``r h``
# wide, ``V`` words. Everything that is kept for the backward pass is divided by :math:`P`, but one term grows with
# :math:`S^2`: the scores, ``n b (S/P) S`` numbers in each layer.

SP = TRAIN + "SEQUENCE_PARALLEL_SIZE="
kinds = {
    "ring, SP 1": launch(f"{SP}1", ranks=1, quiet=True),
    "ring, SP 2": launch(f"{SP}2", ranks=2, quiet=True),
    "recompute, SP 2": launch(f"{SP}2 ATTENTION=ring_recompute", ranks=2, quiet=True),
    "online, SP 2": launch(f"{SP}2 ATTENTION=ring_online", ranks=2, quiet=True),
}
sequence_plots.kept_bars(kinds)

# %%
# Bars are the formula, marks what was counted through autograd's hooks. Term by term for upstream's ring, and the sums:

ring = {"ring, SP 2": kinds["ring, SP 2"]}
show.formula_table(
    sequence_tables.formula_rows(ring, "kept"),
    caption="What rank 0 keeps for the backward pass with upstream's ring",
)

# %%

kept = sequence_tables.formula_rows(kinds, "kept")
show.formula_table(
    [row for row in kept if row["what"].startswith("the step")],
    caption="What rank 0 keeps for the backward pass, by kind of attention",
)

# %%
# Where recomputing is over its sum: while one layer's attention is computed again, all that it had dropped is there
# once more, its scores too.
#
# What the formula does not hold is not divided either: parameters, gradients and optimizer are whole on every rank.

show.memory_bars(kinds)

# %%
# What travels on which axis
# --------------------------
# Within a copy and a stage, the ring passes on K and V and all-reduces their gradients. All ``G`` ranks with the same
# weights average the gradients of their ``W`` parameters. Stages pass on their piece of the hidden states; the first
# and the last add up the gradient of the word embedding that they share. Here is the run with all three axes:

show.formula_table(
    sequence_tables.formula_rows({"dp2 × pp2 × sp2": three}, "sent"),
    caption="Bytes that rank 0 sends in a training step, by axis",
)

# %%
# What it costs
# -------------

plain = f"{SP}1 ATTENTION=plain"
costs = {"plain": launch(plain, ranks=1, quiet=True), **kinds}
CAPTION = "A training step, beside plain attention on one rank"
sequence_tables.cost_table(costs, baseline="plain", caption=CAPTION)

# %%
# The ring saves memory, not arithmetic: two ranks share the work, but wait for each other at every hop, and upstream's
# ring also waits for the device after each transfer. Recomputing runs attention's forward pass twice, communication
# included; the online ring computes only the scores again.

# %%
# The paper, and this page
# ------------------------
# Each activation is divided by the number of ranks; weights are whole on every rank. So the paper asks when that is
# better than to divide the weights (tensor parallelism), and finds for the MLP that ``b S`` must exceed ``32 h``.

one, two = kinds["ring, SP 1"], kinds["ring, SP 2"]
S, h, b = (two.value("sizes", name) for name in ("S", "h", "b"))
saved = [run.value("memory", "activation_bytes") for run in (one, two)]
times = f"{show.relative(*saved)} fewer bytes kept"
holds = "holds" if b * S > 32 * h else "does not hold"
here = f"b S = {b * S:,}, 32 h = {32 * h:,}: {holds} at the {two.preset} preset"
source = ("Li et al. 2021", "https://arxiv.org/abs/2105.13120")
claims = [
    ("activations on 2 ranks", "÷ 2", times),
    ("less memory than cut tensors, in the MLP", "if b S > 32 h", here),
]
show.paper_table(
    {"claim": claim, "paper": paper, "measured": measured, "source": source}
    for claim, paper, measured in claims
)

# %%
# Exercise
# --------
# With stored scores, how many ranks does it take to train sequences twice as long in the memory of one rank, when the
# scores are most of what is kept? And when they are not stored? Decide, then unfold.

longer = 2 * S
# sphinx_gallery_start_ignore
stored = next(P for P in range(1, 99) if longer * longer / P <= S * S)
linear = next(P for P in range(1, 99) if longer / P <= S)
show.answer(
    f"Stored, they are n b S (S/P) numbers: {stored} ranks. Not stored, all that is left "
    f"is proportional to S/P: {linear} ranks."
)
# sphinx_gallery_end_ignore

# %%
# Run it yourself
# ---------------
# In ``tutorial_src/sequence_parallel``; ``colossalai run --nproc_per_node 4 train.py -s`` is the default.

print(*[run.command for run in (*runs.values(), *order.values())], sep="\n")

# %%

show.provenance_table({"4 ranks": default, "8 ranks": three, "SP 2": two})

# %%
# .. handson-downloads:: sequence_parallel/train.py sequence_parallel/config.py sequence_parallel/mesh.py
#    sequence_parallel/engine.py sequence_parallel/masked_text.py sequence_parallel/formulas.py
#    sequence_parallel/alice.txt
#
# Where to go next: :doc:`plot_longer_sequences` looks for the longest sequence that fits.
