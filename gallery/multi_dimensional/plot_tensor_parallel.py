"""
Tensor parallelism in 1D, 2D, 2.5D and 3D, with one model
=========================================================

One vision transformer, not a line of it changed, is trained with its weight matrices cut four ways. You will see
which rank holds which block, check that every cut trains the same model, count the bytes that each cut sends against
its formula, and compare memory and step time with one device and with plain data parallelism.

This lesson is not about pipelines or mixtures of these; it changes one thing, how a matrix is cut.
"""

# %%
# Who holds which block
# ---------------------
# A transformer is mostly matrix products, so the question is where the blocks of a matrix live. We start the same
# training script under each mode and let it record which rank holds which block of every parameter. ``launch`` starts
# real processes, one for each rank; two of the modes need eight of them.

from handson import launch, show

TRAIN = "hybrid_parallel/train.py --config config.py -s --check --measure "
TRAIN += "PIPELINE_SIZE=1 "
FOUR = TRAIN + "TENSOR_PARALLEL_SIZE=4 TENSOR_PARALLEL_MODE="
tensor = {
    "1D on 4": launch(FOUR + "1d", ranks=4),
    "2D on 4": launch(FOUR + "2d", ranks=4, quiet=True),
    "2.5D on 4": launch(FOUR + "2.5d", ranks=4, quiet=True),
}

# %%
# That was the log of 1D. NCCL wants a GPU for each rank, so on a host with four GPUs the
# eight-rank modes run on the CPU, at a smaller size; beside them, one process of that size.

ONE = TRAIN + "TENSOR_PARALLEL_SIZE=1"
EIGHT = TRAIN + "TENSOR_PARALLEL_SIZE=8 TENSOR_PARALLEL_DEPTH=2 TENSOR_PARALLEL_MODE="
on_cpu = {"preset": "laptop", "quiet": True}
eight = {
    "one process": launch(ONE, ranks=1, **on_cpu),
    "2.5D on 8": launch(EIGHT + "2.5d", ranks=8, **on_cpu),
    "3D on 8": launch(EIGHT + "3d", ranks=8, **on_cpu),
}
kinds = dict(zip(["1D", "2D"], tensor.values(), strict=False))
kinds |= {"2.5D": eight["2.5D on 8"], "3D": eight["3D on 8"]}
show.shard_maps(kinds, "blocks.*.mlp.dense_1.weight")

# %%
# **1D** cuts the matrix in one direction; each rank keeps the whole activation. **2D** arranges four ranks in a square
# and cuts both directions, activations too. **2.5D** stacks such squares: each layer of the stack holds the same
# blocks and takes a part of the batch. **3D** puts the ranks in a cube, and no two of them hold the same block.
#
# The mesh says how ranks are numbered: a rank's coordinates decide its block.

show.mesh_map(kinds["3D"])

# %%
# Every parameter, not only the one in the picture. Subscripts name the mesh axis that a dimension is split over; the
# notation is the :doc:`same on every page </notation>`.

show.sharding_table(kinds["2D"])

# %%
# Biases and layer norms are cut in 2D as well. In 1D they are on every rank, since there each rank needs them whole:

show.sharding_table(kinds["1D"], containing="blocks")

# %%
# Is it still the same model?
# ---------------------------
# Each run began with a check: every rank took its blocks out of one full set of weights, then five steps of SGD in
# fp32 ran beside the same model on a single device, on the same batches. The steps' losses may differ by 1e-5.

one = {"one device": launch(ONE, ranks=1, quiet=True)}
data = {"data parallel": launch(ONE, ranks=4, quiet=True)}
show.loss_curves({**data, **tensor})

# %%

show.parity_table(
    {**data, **tensor, "2.5D on 8": eight["2.5D on 8"], "3D on 8": eight["3D on 8"]}
)

# %%
# What each cut sends
# -------------------
# Take one linear layer, :math:`Y = XW`, forward and backward, and count every byte that a rank must send. The
# formulas below are derived for these very shapes; where counted ÷ expected is 1.00×, we understand the mode.

LINEAR = "hybrid_parallel/linear.py MODE="
linear = {
    "1D on 4": launch(LINEAR + "1d", ranks=4, quiet=True),
    "2D on 4": launch(LINEAR + "2d", ranks=4, quiet=True),
    "1D on 8": launch(LINEAR + "1d", ranks=8, **on_cpu),
    "2.5D on 8": launch(LINEAR + "2.5d DEPTH=2", ranks=8, **on_cpu),
    "3D on 8": launch(LINEAR + "3d", ranks=8, **on_cpu),
}
counted = [
    {
        "what": label,
        "collective": f"{row['collective']} × {row['calls']}",
        "group": row["group"],
        "formula": row["formula"],
        "expected": row["wire_bytes_expected"],
        "counted": row["wire_bytes_counted"],
        "unit": "B",
    }
    for label, run in linear.items()
    for row in run.rows("linear")
    if row["layers"] == "linear"
]
show.formula_table(
    counted,
    caption="One linear layer: bytes that each rank sends, from the algorithm and counted",
)

# %%
# Colossal-AI's documentation gives one formula a mode, and they are easy to misread: those of 1D and 3D count whole
# matrices (:math:`S` elements), those of 2D and 2.5D the slice of a mesh row (:math:`S/q`). In one unit the order is
# clear. On 4 ranks 1D and 2D send the same; from 8 on 3D sends least. For 2.5D the formula leaves out the all-reduce of
# the weight's gradient over the depth, and so does upstream's code: its copies drift apart
# (:doc:`repair dep2p5d </repairs>`).

totals = {label: run.rows("linear_total")[0] for label, run in linear.items()}
fields = {
    "published formula": "published_formula",
    "its unit": "unit",
    "published": "published_value",
    "counted": "measured_in_unit",
    "counted, in whole matrices S": "whole_matrices",
}
show.Table(
    ["mode", *fields],
    [
        [label, *(total[name] for name in fields.values())]
        for label, total in totals.items()
    ],
    "The published formulas, and what was counted in their unit and in one unit",
)

# %%
# In the whole model: 1D all-reduces whole activations, 2D broadcasts and reduces blocks of activations and of weights,
# in many more calls; plain data parallelism sends each gradient once.

show.communication_bars({**data, **tensor})

# %%
# Memory and time
# ---------------
# Each rank's peak during one training step. 1D divides the weights but keeps whole activations on every rank, and they
# are most of the memory; 2D and 2.5D divide both.

everything = {**one, **data, **tensor}
show.memory_bars(everything)

# %%

show.step_time_bars(everything)

# %%

show.parallel_comparison(everything, baseline="one device")

# %%
# The eight-rank modes at their own size, beside one process of that size:

show.parallel_comparison(eight, baseline="one process")

# %%
# A mesh that cannot be
# ---------------------
# 2D wants a square number of ranks. Three are refused, in one sentence and before anything heavy is loaded:

three = TRAIN + "TENSOR_PARALLEL_SIZE=3 TENSOR_PARALLEL_MODE=2d"
refused = launch(three, ranks=3, expect_failure=True)
print(refused.error)

# %%
# The papers, and this page
# -------------------------
# The papers measured 64 GPUs over several hosts; here are four GPUs with a fast link between each two, or a laptop.

speed = {label: run.value("step_time", "median_ms") for label, run in tensor.items()}
peak = {label: run.value("memory", "peak_bytes") for label, run in tensor.items()}
sent = {label: total["whole_matrices"] for label, total in totals.items()}
where = tensor["2D on 4"].provenance["hardware"]
faster = show.relative(speed["1D on 4"], speed["2D on 4"])
smaller = show.relative(peak["1D on 4"], peak["2D on 4"])
fewer = {label: show.relative(sent["1D on 8"], sent[label]) for label in sent}
optimus = ("Xu et al. 2021", "https://arxiv.org/abs/2104.05343")
tesseract = ("Wang et al. 2021", "https://arxiv.org/abs/2105.14500")
cube = ("Bian et al. 2021", "https://arxiv.org/abs/2105.14450")
claims = [
    ("2D trains faster than 1D", "1.48×", f"{faster} on {where}", optimus),
    ("2D fits a larger batch", "8×", f"{smaller} less memory", optimus),
    ("2.5D is faster than 1D", "1.38×", f"{fewer['2.5D on 8']} fewer bytes", tesseract),
    ("3D is faster than 1D", "2.32×", f"{fewer['3D on 8']} fewer bytes", cube),
]
columns = ("claim", "paper", "measured", "source")
show.paper_table(dict(zip(columns, claim, strict=True)) for claim in claims)

# %%
# On four ranks 1D and 2D send equally many bytes a layer, and 2D sends them in many small calls, so here 1D is the
# faster; the advantage that the paper saw comes with more ranks, :math:`1/\sqrt{P}` in 2D against a constant in 1D.
# Memory is where 2D gains at once. The speed of 2.5D and 3D needs eight GPUs; the bytes they save do not.

# %%
# Exercise
# --------
# How much does each rank send for one layer on 16 ranks, in whole matrices :math:`S`, in 2D and in 1D? Work it out
# from the table above, :math:`6(q-1)/q^2` and :math:`2(P-1)/P`, then unfold.

q, ranks = 4, 16
# sphinx_gallery_start_ignore
show.answer(
    f"2D: {6 * (q - 1) / q**2:.3f} S. 1D: {2 * (ranks - 1) / ranks:.3f} S.",
    "On 4 ranks they are equal; from 9 on, 2D sends less.",
)
# sphinx_gallery_end_ignore

# %%
# Run it yourself
# ---------------
# In ``tutorial_src/hybrid_parallel``; ``colossalai run`` takes the same arguments as ``torchrun``. The two lines of
# ``config.py`` that change are the two last arguments; without ``--check --measure`` the script trains. With more ranks
# than the host has GPUs, start with ``CUDA_VISIBLE_DEVICES=`` so that all of them use the CPU.

print(tensor["2D on 4"].command)

# %%

show.provenance_table(
    {**one, "2D on 4": tensor["2D on 4"], "3D on 8": eight["3D on 8"]}
)

# %%
# .. handson-downloads:: hybrid_parallel/train.py hybrid_parallel/config.py hybrid_parallel/linear.py
#
# The papers: Megatron-LM's 1D `(Shoeybi et al. 2019) <https://arxiv.org/abs/1909.08053>`_, and 2D, 2.5D and 3D as
# linked in the table above. The upstream pages: `1D <https://colossalai.org/docs/features/1D_tensor_parallel>`_ to
# `3D <https://colossalai.org/docs/features/3D_tensor_parallel>`_. How runs are made, recorded and kept honest:
# :doc:`/how_it_works`.
