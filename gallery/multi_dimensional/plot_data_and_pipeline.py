"""
Data and pipeline parallelism
=============================

Two ways to train one model on several accelerators without cutting a matrix: each takes a share of the images, or
each takes a share of the layers. You will see when every rank computed, from the times that it recorded, measure how
long ranks wait against the formula, count what they send, and compare what they keep in memory.

This lesson is not about cutting matrices, nor about mixtures; those have lessons of their own.
"""

# %%
# A pipeline at work
# ------------------
# Four ranks hold three blocks of the transformer each, on a laptop one. An image passes all four, so a rank waits for
# the one before it, and in the backward pass for the one after it. What helps is to cut the batch into
# **micro-batches**: the first stage goes on with the second piece while the second stage has the first.

from handson import launch, show

TRAIN = "hybrid_parallel/train.py --config config.py -s "
STAGES = "PIPELINE_SIZE=4 TENSOR_PARALLEL_SIZE=1 NUM_MICRO_BATCHES=8 "
STEPS = "WARMUP_STEPS=1 TIMED_STEPS=5"
ALL = TRAIN + "--check --measure "
pipeline = launch(ALL + "--trace " + STAGES + STEPS, ranks=4, quiet=True)
show.gantt(pipeline, ("1f1b", 1), ("gpipe", 4), ("1f1b", 4))

# %%
# Full colour is forward, faded is backward, the number is the micro-batch; a gap is waiting. `GPipe
# <https://arxiv.org/abs/1811.06965>`_ does all forwards, then all backwards. **1F1B**, from `PipeDream
# <https://arxiv.org/abs/1806.03377>`_, does a backward as soon as there is one to do, in turn with the forwards that
# are left. All gradients belong to the same weights in both; the update comes when the pipeline has run empty.
#
# The times are real. On the CPU all processes read one clock. On GPUs the marks are CUDA events, and each rank ties its
# GPU to that clock: it lets an event pass the idle GPU between two readings, as close together as it can. The error
# is at most half the distance of those two:

error = max(row["clock_error_ms"] for row in pipeline.rows("stage"))
print(f"at most {show.quantity(error, 'ms')}")
pipeline

# %%
# How long a rank waits
# ---------------------
# With p stages and m micro-batches of equal length, each rank works m of m + p − 1 beats and waits (p − 1)/(m + p − 1)
# of the time: the **bubble**. The formula knows no messages, no unequal stages and no ranks that share a core.

show.bubbles(pipeline)

# %%
# By the formula both orders wait equally long. Nor do they change the training: with the weights held still, every
# order and every number of micro-batches finds the same loss and the same gradients.

show.bubble_table(pipeline)

# %%
# What a stage keeps
# ------------------
# A forward leaves behind what its backward will need. Stage s of p starts p − s micro-batches before the first comes
# back, and in 1F1B each backward frees one before the next forward: it never holds more. The first stage therefore
# holds most. In GPipe's order every stage holds all m. The strokes are this rule, the bars what was counted.

show.stage_memory(pipeline, 8)

# %%

show.in_flight_table(pipeline, 8)

# %%
# Which orders Colossal-AI has
# ----------------------------
# The tutorial's engine knows 1F1B alone. GPipe's order above is upstream's own parts, put together in ``gpipe.py`` in
# the order in which upstream's ``FillDrainPipelineEngine`` works; that engine runs over torch's RPC. The interleaved
# schedule, where each rank holds several shorter stages, waits (p − 1)/(vm + p − 1) with v of them: today's API has it,
# the older engine no longer starts it. The column *here* is what happened when each was asked, on the CPU; the engines
# over RPC want a GPU for each stage.

upstream = launch("hybrid_parallel/upstream_schedules.py", preset="laptop", quiet=True)
found = [
    [show.code(f"{r['module']}.{r['name']}"), r["order"], r["fault"] or "starts"]
    for r in upstream.rows("upstream")
]
columns = ["schedule", "order", "here"]
show.Table(columns, found, "Pipeline schedules in the installed Colossal-AI")

# %%
# Data parallelism: the same layers, other images
# -----------------------------------------------
# Now every rank has the whole model and a share of the batch, and nobody waits for an activation. What has to travel is
# gradients: PyTorch's DDP fills buckets of 25 MB with them, the first of 1 MB, and sends each round while the backward
# pass fills the next. A model that fits into one bucket, as a laptop's does, has nothing to hide behind.

ALONE = "PIPELINE_SIZE=1 TENSOR_PARALLEL_SIZE=1"
data = launch(TRAIN + "--trace " + ALONE, ranks=4, quiet=True)
show.gantt(data)

# %%
# Each mark below a bar is a bucket on its way. To travel during the backward pass is not yet to cost nothing: an
# all-reduce works on the same GPU or cores, and filling a bucket is a copy. So compare what the all-reduces add to a
# step with what they take alone, and both with the step:

show.overlap_table(data)

# %%
# In a ring each rank sends 2 (n − 1)/n times the gradients: less than twice, on however many ranks.

scaled = {n: launch(ALL + ALONE, ranks=n, quiet=True) for n in (1, 2, 4)}
rows = []
for n in (2, 4):
    b = scaled[n].value("parameters_total", "bytes")
    sent = sum(row["wire_bytes"] for row in scaled[n].value("communication", "rows"))
    formula = {"formula": f"2 ({n} − 1)/{n} × 4 B × parameters", "unit": "B"}
    formula |= {"expected": 2 * (n - 1) / n * b, "counted": sent}
    rows.append({"what": f"gradients, each of {n} ranks", **formula})
show.formula_table(rows, caption="Data parallelism: bytes that a rank sends in a step")

# %%
# The global batch stays the same, so more ranks mean less work for each: strong scaling, the harder kind. What is lost
# need not be communication. Compare four ranks' time without all-reduces above with a quarter of one device's: a
# smaller share of the batch also makes worse use of a device.

show.scaling(scaled)

# %%
# Side by side
# ------------
# Data parallelism is the faster of the two as long as the model fits: it divides what is kept for the backward pass,
# not the model. A pipeline divides both.

names = {1: "one device", 2: "data on 2", 4: "data on 4"}
runs = {names[n]: run for n, run in scaled.items()} | {"pipeline on 4": pipeline}
show.memory_bars(runs)

# %%

show.parallel_comparison(runs, baseline="one device")

# %%
# Five steps of SGD beside the model on one device, before anything was measured:

show.parity_table(
    {name: runs[name] for name in ("data on 2", "data on 4", "pipeline on 4")}
)

# %%
# The papers, and this page
# -------------------------
# With p = 4 and m = 8, where the formula says 27 % of waiting; at m = 16 it would say 16 %.

last = {row["order"]: row for row in pipeline.rows("bubble")}  # those with m = 8
idle = last["1f1b"]["bubbles"][last["1f1b"]["shown"]]
stage0 = {row["order"]: row for row in pipeline.rows("stage", rank=0)}
kept = [row["saved_bytes"] / row["micro_batch_bytes"] for row in stage0.values()]
huang = ("Huang et al. 2018, section 2.3", "https://arxiv.org/abs/1811.06965")
narayanan = ("Narayanan et al. 2021, section 2.2", "https://arxiv.org/abs/2104.04473")
claims = [
    ("waiting ÷ work is (p − 1)/m", "0.375", show.number(idle / (1 - idle)), narayanan),
    ("1F1B keeps p micro-batches", "4", show.number(kept[0]), narayanan),
    ("GPipe's order keeps m", "8", show.number(kept[1]), narayanan),
    ("waiting is negligible from m = 4p on", "m = 16", f"{idle:.0%} at m = 8", huang),
]
names = ("claim", "paper", "measured", "source")
show.paper_table(dict(zip(names, claim, strict=True)) for claim in claims)

# %%
# Exercise
# --------
# A pipeline of 8 stages shall wait no more than a tenth of the time. How many micro-batches does that take, and how
# many of them does the first stage keep in either order? Decide, then unfold.

p = 8
m = next(m for m in range(1, 1000) if 10 * (p - 1) <= m + p - 1)
show.answer(
    f"{m}: then it waits {(p - 1) / (m + p - 1):.1%}. In GPipe's order the first stage keeps all {m}, in 1F1B {p}. "
    "That is why 1F1B can afford many micro-batches, and many micro-batches are what makes a pipeline worth it."
)

# %%
# Run it yourself
# ---------------
# In ``tutorial_src/hybrid_parallel``; ``--trace`` records times, without any of the flags the script trains.

print(*[run.command for run in (pipeline, data, scaled[4], upstream)], sep="\n")

# %%

show.provenance_table(
    {"one device": scaled[1], "data on 4": scaled[4], "pipeline on 4": pipeline}
)

# %%
# .. handson-downloads:: hybrid_parallel/train.py hybrid_parallel/config.py hybrid_parallel/tracing.py
#    hybrid_parallel/timeline.py hybrid_parallel/gpipe.py hybrid_parallel/overlap.py
#    hybrid_parallel/upstream_schedules.py
#
# Next: cut the matrices themselves, :doc:`plot_tensor_parallel`, then mix all of it, :doc:`plot_hybrid`. Upstream on
# `pipeline parallelism <https://colossalai.org/docs/features/pipeline_parallel>`_.
