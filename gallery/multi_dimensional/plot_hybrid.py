"""
Hybrids: data, pipeline and tensor parallelism together
=======================================================

Large models are trained with all of it at once: tensors cut inside a host, layers between hosts, and copies of the
whole thing for more images. Here the ranks of one host are divided in six ways, and nothing but lines of ``config.py``
changes. You will see where each rank sits, check that every mixture trains the same model, and count what it sends.

This lesson does not explain the parts; :doc:`plot_data_and_pipeline` and :doc:`plot_tensor_parallel` do.
"""

# %%
# The tutorial's default
# ----------------------
# As it comes, ``config.py`` asks for two pipeline stages of two tensor-parallel ranks each: four ranks on a mesh.

from handson import launch, show

CHECK = "hybrid_parallel/train.py --config config.py -s --check "
TRAIN = CHECK + "--measure "
default = launch(TRAIN, ranks=4, quiet=True)
show.mesh_map(default)

# %%
# A rank's coordinates say which work is its own: the row is its stage, the column its part of each matrix. So the ranks
# that cut one matrix are neighbours, because they talk most; rank 0 and rank 2 meet once for each micro-batch.

print(*default.log, sep="\n")
default

# %%
# Two lines of ``config.py``
# --------------------------
# The tutorial's next step: tensor parallelism of size 4 in 2D, on eight ranks.

show.config_change(
    "hybrid_parallel/config.py", "TENSOR_PARALLEL_SIZE=4", "TENSOR_PARALLEL_MODE=2d"
)

# %%
# ``KEY=value`` on the command line does the same as the edited line. ``PIPELINE_SIZE`` still says 2, so two stages are
# two squares of four ranks. Eight ranks run on the host's CPU, at a size that it bears.

TWO_D = "TENSOR_PARALLEL_SIZE=4 TENSOR_PARALLEL_MODE=2d "
on_cpu = {"ranks": 8, "preset": "laptop", "quiet": True}
step4 = launch(CHECK + TWO_D, **on_cpu)
show.mesh_map(step4)

# %%
# The same two lines on four ranks cannot work, and the script says what would:

refused = launch(CHECK + TWO_D, ranks=4, quiet=True, expect_failure=True)
print(refused.error)

# %%
# What is left over is data parallel
# ----------------------------------
# The product of the two sizes says how many ranks one copy of the model takes. More ranks make more copies, and each
# takes its share of the batch. The default on eight ranks has all three axes:

three = launch(CHECK, **on_cpu)
show.mesh_map(three)

# %%
# Every mixture that this page runs, with the lines that differ from ``config.py`` as it comes, and what share of the
# parameters the fullest rank then holds:

NO_PIPELINE, NO_TENSOR = "PIPELINE_SIZE=1 ", "TENSOR_PARALLEL_SIZE=1 "
four = {
    "pp2 × 1d2": default,
    "dp2 × 1d2": launch(TRAIN + NO_PIPELINE, ranks=4, quiet=True),
    "dp2 × pp2": launch(TRAIN + NO_TENSOR, ranks=4, quiet=True),
}
eight = {
    "dp2 × pp2 × 1d2": three,
    "pp2 × 2d4": step4,
    "dp2 × 2d4": launch(CHECK + NO_PIPELINE + TWO_D, **on_cpu),
}
show.division_table({**four, **eight})

# %%
# Still the same model
# --------------------
# Each run began beside the model on one device: the same weights, the same batches, five steps of SGD in fp32.

show.parity_table({**four, **eight})

# %%
# What the mixtures cost
# ----------------------
# Beside one device and plain data parallelism. How much memory a mixture saves, and at what price in time?

ONE = NO_PIPELINE + NO_TENSOR
pure = {
    "one device": launch(TRAIN + ONE, ranks=1, quiet=True),
    "dp4": launch(TRAIN + ONE, ranks=4, quiet=True),
}
show.memory_bars({**pure, **four})

# %%

show.parallel_comparison({**pure, **four}, baseline="one device")

# %%
# A data-parallel axis divides what is kept for the backward pass, the other two the parameters as well. On eight ranks
# nothing is timed here: at the size that a CPU bears, a step would be mostly messages.

# %%
# What travels on which axis
# --------------------------
# Each axis has its own message. The data axis averages gradients: rank 0 sends as many bytes as it holds, 2 (n − 1)/n
# being 1 for two. The pipeline axis passes on one activation forward and one back; between tensor-parallel ranks each
# sends its half and they gather it on the other side. Beside it go 40 bytes that say how large it is. The tensor axis
# sums activations, four times in a block: here is by far the most to send, so here must be the fastest links.

show.communication_bars(four)

# %%
# Below, an activation is [images of one copy, tokens, hidden] in fp32, and n the number of ranks along an axis.

show.axis_table(four)

# %%
# Today's interface
# -----------------
# All that was the older half of Colossal-AI. Its present interface, ``Booster`` with ``HybridParallelPlugin``, cuts
# transformers' own models: here ``ViTForImageClassification``, with the number of ranks along each axis.

BOOSTER, PLAIN = "step_by_step/booster.py ", "step_by_step/step1_plain.py"
today = {
    "one device": launch(PLAIN, ranks=1, quiet=True),
    "tp4": launch(BOOSTER + "TP=4", ranks=4, quiet=True),
    "pp2": launch(BOOSTER + "PP=2", ranks=2, quiet=True),
    "pp2 × tp2": launch(BOOSTER + "TP=2 PP=2", ranks=4, quiet=True),
}
today8 = {
    "one process": launch(PLAIN, ranks=1, preset="laptop", quiet=True),
    "dp2 × pp2 × tp2": launch(BOOSTER + "TP=2 PP=2", **on_cpu),
}
compared = show.against(today, baseline="one device")
compared8 = show.against(today8, baseline="one process")
several = [(name, run) for name, run in (compared | compared8).items() if run.ranks > 1]
show.parity_table(dict(several), caption="Ten steps of SGD by Booster")

# %%

CAPTION = "Booster: the same training step, compared with one device"
show.parallel_comparison(compared, baseline="one device", caption=CAPTION)

# %%
# Its tensor parallelism is 1D alone. For 2D, 2.5D and 3D one still needs the older layers:

no_2d = launch(BOOSTER + "MODE=2d", ranks=4, quiet=True, expect_failure=True)
print(no_2d.error)

# %%
# The paper, and this page
# ------------------------
# Megatron-LM's advice for clusters: tensor parallelism up to the size of a host, then pipelines, then copies.

step = {name: run.value("step_time", "median_ms") for name, run in four.items()}
ratio = show.relative(step["dp2 × pp2"], step["dp2 × 1d2"])
source = ("Narayanan et al. 2021, takeaway 1", "https://arxiv.org/abs/2104.04473")
claim = {"claim": "inside a host tensors before pipelines", "paper": "tensor faster"}
claim |= {"measured": f"dp2 × pp2 takes {ratio} of dp2 × 1d2", "source": source}
show.paper_table([claim])

# %%
# Exercise
# --------
# Pipeline 2 × 2D on 4 divides the model among eight ranks. Why does the fullest hold more than an eighth of it: because
# some parameters are whole on several ranks, or because the stages are unequal? Decide, then unfold.

from math import prod

counts = [row["count"] for row in step4.rows("parameters_total")]
rows = step4.rows("parameter")
whole = sum(prod(row["global_shape"]) * row["count"] for row in rows)
extra = sum(counts) - whole
show.answer(
    f"Because of the stages: its ranks hold {max(counts):,} or {min(counts):,}, and an "
    f"eighth is {whole // 8:,}. The first stage has the embedding beside its blocks, "
    f"the last only a norm and the head. Whole on several ranks is one bias of the "
    f"head: all ranks together hold {extra} numbers more than one process."
)

# %%
# Run it yourself
# ---------------
# In ``tutorial_src/hybrid_parallel``, or in ``tutorial_src/step_by_step`` for ``booster.py``. Without ``--check
# --measure`` the script trains; ``colossalai run`` takes the same arguments. With more ranks than the host has GPUs,
# start with ``CUDA_VISIBLE_DEVICES=`` so that all of them use the CPU.

runs = {**four, **eight, "today: pp2 × tp2": today["pp2 × tp2"]}
print(*[run.command for run in runs.values()], sep="\n")

# %%

columns = {"one device": pure["one device"], "4 ranks": default, "8 ranks": step4}
show.provenance_table({**columns, "today": today["pp2 × tp2"]})

# %%
# .. handson-downloads:: hybrid_parallel/train.py hybrid_parallel/config.py step_by_step/booster.py
#    step_by_step/step1_plain.py step_by_step/vit.py step_by_step/report.py step_by_step/blocks.py
#
# Where to go next: :doc:`plot_from_pytorch_to_colossalai` builds the ``Booster`` script line by line. Upstream on
# `hybrid parallelism <https://colossalai.org/docs/basics/booster_plugins>`_.
