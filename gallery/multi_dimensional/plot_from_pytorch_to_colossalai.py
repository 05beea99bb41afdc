"""
From PyTorch to Colossal-AI, step by step
=========================================

One vision transformer and five scripts that train it. The first is plain PyTorch in one process. Each of the others
changes a few lines of the one before: start four processes, share the batch, let Colossal-AI's ``Booster`` do it, and
cut the model itself in two directions. The loss is the same all the way.

You will see which lines make a training loop parallel, and what each of them makes a process hold and send. This
lesson is not about speed, nor about the inside of pipelines and tensor parallelism, which have their own lessons.
"""

# %%
# The picture
# -----------
# A training step takes every image through every layer. Drawn as a square, images from left to right and layers from
# top to bottom, this is who computes what in each script, as its processes recorded it. A rank has one colour.

from handson import launch, show

SCRIPTS = {
    "1 plain": "step_by_step/step1_plain.py",
    "2 launch": "step_by_step/step2_launch.py",
    "3 DDP": "step_by_step/step3_ddp.py",
    "4 Booster": "step_by_step/step4_booster.py",
    "5 hybrid": "step_by_step/step5_hybrid.py",
}
runs = {}
for name, script in SCRIPTS.items():
    runs[name] = launch(
        script, ranks=4 if runs else 1, quiet=True
    )  # the first is one process
show.work_map(runs)

# %%
# After step 2, four ranks do the same work four times. Steps 3 and 4 cut between images: **data parallelism**. Step 5
# cuts between layers, **pipeline parallelism**, and cuts each layer in two, **tensor parallelism**.

# %%
# Step 1: plain PyTorch
# ---------------------
# The model is transformers' ``ViTForImageClassification`` with weights from a fixed seed. ``vit.py`` builds it, and
# the images: the pattern of one of eight classes, under noise. ``report.py`` records what this page shows.

show.source(SCRIPTS["1 plain"])

# %%

print(*runs["1 plain"].log, sep="\n")
runs["1 plain"]

# %%
# Step 2: processes that know of each other
# -----------------------------------------
# ``torchrun`` starts a script several times and tells each copy its rank. ``launch_from_torch`` reads that and joins
# the process group: NCCL with a GPU for each rank, else gloo. The line before it applies the
# :doc:`repairs </repairs>` that this host needs.

show.diff(SCRIPTS["1 plain"], SCRIPTS["2 launch"])

# %%
# Nothing is shared yet. Every rank draws the same weights, reads the same images and finds the same loss, but for
# rounding: a GPU may add in another order each time.

runs["2 launch"]

# %%
# Step 3: each its share of the batch
# -----------------------------------
# The sampler gives rank r the images r, r + 4, r + 8 and so on; the four shares are the batch of step 1.
# ``DistributedDataParallel`` averages the gradients during the backward pass, so that all copies take the same step.

show.diff(SCRIPTS["2 launch"], SCRIPTS["3 DDP"])

# %%
# The price can be counted. An all-reduce of b bytes among n ranks makes each of them send 2 (n − 1)/n b; here b is the
# gradients, four bytes for each parameter.

ddp = runs["3 DDP"]
b = ddp.value("parameters_total", "bytes")
counted = sum(row["wire_bytes"] for row in ddp.value("communication", "rows"))
gradients = {
    "what": "gradients, from each rank",
    "formula": "2 (n − 1)/n × 4 B × parameters",
    "unit": "B",
}
gradients |= {"expected": 2 * 3 / 4 * b, "counted": counted}
show.formula_table(
    [gradients], caption="Data parallelism: bytes that each rank sends in a step"
)

# %%

ddp

# %%
# Step 4: the same, by Booster
# ----------------------------
# A ``Booster`` is one interface to many kinds of parallelism; a plugin says which. The plugin deals out the data,
# ``boost`` wraps model and optimizer, and ``booster.backward`` stands for ``loss.backward``: some plugins scale the
# loss or gather the gradients themselves.

show.diff(SCRIPTS["3 DDP"], SCRIPTS["4 Booster"])

# %%
# Underneath works the same ``DistributedDataParallel``, and it sends the same bytes. What is gained: the kind of
# parallelism has become one line.

show.communication_table({name: runs[name] for name in ("3 DDP", "4 Booster")})

# %%

runs["4 Booster"]

# %%
# Step 5: cut the model
# ---------------------
# That line changes: two pipeline stages of two tensor-parallel ranks. ``boost`` knows the layers of transformers' ViT:
# each stage keeps half of them, and linear layers become ``Linear1D_Col`` or ``Linear1D_Row`` with half a matrix. A
# pipeline runs forward and backward of four micro-batches in turn, so ``execute_pipeline`` takes over both calls; only
# the last stage has a loss to return.

show.diff(SCRIPTS["4 Booster"], SCRIPTS["5 hybrid"])

# %%

print(*runs["5 hybrid"].log, sep="\n")
runs["5 hybrid"]

# %%
# The same loss
# -------------
# Same images, same first weights. What is left are sums taken in another order, which round differently in fp32.

compared = show.against(runs, baseline="1 plain")
show.loss_curves({name: run for name, run in compared.items() if name != "1 plain"})

# %%
# What a rank holds
# -----------------
# Data parallelism divides what is saved for the backward pass and leaves the model whole on every rank; the hybrid
# divides both. Its first stage holds more: it starts a second micro-batch before the first has come back.

show.memory_bars(runs)

# %%

show.parallel_comparison(compared, baseline="1 plain")

# %%
# What a rank sends
# -----------------
# In the hybrid no two ranks hold the same block of a matrix, so no gradients travel. Activations do, [images, tokens,
# hidden] in fp32: once from stage to stage, and inside a stage by all-reduces. Megatron-LM, whose design this is,
# counts four in a layer, two forward and two backward; each rank sends 2 (n − 1)/n = 1 activation in each.

hybrid = runs["5 hybrid"]
sizes, layers = hybrid.rows("sizes")[0], len(hybrid.value("share", "layers"))
activation = 4 * sizes["batch"] * sizes["tokens"] * sizes["hidden"]
sent = {
    row["collective"]: row["wire_bytes"]
    for row in hybrid.value("communication", "rows")
}
forward = {"what": "to the next stage", "formula": "activation", "unit": "B"}
forward |= {"expected": activation, "counted": sent["send"]}
inside = {"what": "inside the stage", "formula": "4 × layers × activation", "unit": "B"}
inside |= {"expected": 4 * layers * activation, "counted": sent["all_reduce"]}
show.formula_table(
    [forward, inside], caption="The hybrid: bytes that rank 0 sends in a step"
)

# %%
# One and a half times the formula, and that is no mistake in counting:

claim = {
    "claim": "all-reduces in one layer",
    "paper": 4,
    "measured": round(sent["all_reduce"] / layers / activation),
    "source": ("Shoeybi et al. 2019, section 3", "https://arxiv.org/abs/1909.08053"),
    "why": "query, key and value are three layers here, each with its own all-reduce backward",
}
show.paper_table([claim])

# %%
# What Booster does not have
# --------------------------
# Tensor parallelism in 2D, 2.5D and 3D: only Colossal-AI's older layers do that. ``booster.py``, which takes the
# sizes from the command line, says so.

refused = launch("step_by_step/booster.py", "MODE=2d", ranks=4, expect_failure=True)
print(refused.error)

# %%
# Exercise
# --------
# Let ``booster.py`` give all four ranks to tensor parallelism. Does each then hold a quarter of the parameters, and
# does it send more than in step 5, or less? Decide, then unfold.

tp4 = launch("step_by_step/booster.py", "TP=4", ranks=4, quiet=True)

# sphinx_gallery_start_ignore
held = [run.value("parameters_total", "count") for run in (tp4, runs["1 plain"])]
wire = [
    sum(row["wire_bytes"] for row in run.value("communication", "rows"))
    for run in (tp4, hybrid)
]
show.answer(
    f"A little more than a quarter: {held[0] / held[1]:.1%}, because embeddings, layer norms and some biases are whole "
    f"on every rank. And it sends more, {show.quantity(wire[0], 'B')} in a step, {show.relative(*wire)} as much: each "
    "rank works on all layers instead of half of them, and the ring's 2 (n − 1)/n is 3/2 instead of 1."
)
# sphinx_gallery_end_ignore

# %%
# Run it yourself
# ---------------
# In ``tutorial_src/step_by_step``. With ``HANDSON_ROWS=rows.jsonl`` before it, a command also writes the raw data of
# this page, a line for each thing that a rank measured.

for run in (*runs.values(), tp4):
    print(run.command)

# %%

show.provenance_table({name: runs[name] for name in ("1 plain", "5 hybrid")})

# %%
# .. handson-downloads:: step_by_step/step1_plain.py step_by_step/step2_launch.py step_by_step/step3_ddp.py
#    step_by_step/step4_booster.py step_by_step/step5_hybrid.py step_by_step/booster.py step_by_step/vit.py
#    step_by_step/report.py step_by_step/blocks.py
#
# Next: what exactly is cut in a layer, :doc:`plot_tensor_parallel`. Upstream on
# `Booster and its plugins <https://colossalai.org/docs/basics/booster_plugins>`_.
