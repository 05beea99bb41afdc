"""
The solver for a mesh you don't own
===================================

Before you rent eight GPUs, or thirty-two, ask the solver what it would do with them. It needs one process and no GPU:
a model without weights, and figures for how fast a device computes and how fast its links are. You will see the plan
for ResNet-50 node by node, what becomes of it when a link is slow or memory is short, and where the solver's costs
mislead it.

Nothing is trained here and every time is a prediction. What a plan really takes is measured in
:doc:`plot_resnet50`.
"""

# %%
# Eight H200s, and three links between the two fours
# --------------------------------------------------
# The mesh has two rows (axis 0) of four devices (axis 1). The four are always joined by NVLink; the two rows by NVLink
# too, or by a network of 400 Gb/s, or by one of 100 Gb/s. One job traces the network and solves for each.

from handson import launch, show
from handson.show.plan_formulas import assumptions_table, by_hand, rings_table
from handson.show.plan_plots import budget_curve, network, step_bars
from handson.show.plan_tables import edge_table, plan_rows, plan_table, plans_table

PLAN = "auto_parallel/plan.py resnet50 --mesh 2x4 "
here = {"preset": "laptop"}  # one process, whatever the host has
links = launch(PLAN + "--sweep 450GB/s,50GB/s,12.5GB/s", **here)
nodes, edges = plan_rows(links, "450 GB/s")
network(nodes, edges, title="NVLink everywhere")

# %%
# ``b01`` in a box: the batch is split over both axes, every device holds the whole weight. The solver writes
# ``S01R = S01R x RR`` for ``Y[b01, o] = X[b01, i] × W[i, o]`` (:doc:`notation </notation>`). With fast links
# everywhere it finds plain data parallelism, with nobody having told it so.
#
# The plan node by node; layers that agree share a row, and the raw data has all of them.

plan_table(nodes, caption="ResNet-50 on 2 × 4 with NVLink everywhere")

# %%
# Where the milliseconds come from
# --------------------------------
# Colossal-AI counts in multiply-accumulates, and out of the box a byte on a link costs one of them. ``plan.py`` sets
# the exchange rate: a byte costs what a device could have computed meanwhile. Then a sum by hand must agree:

plans = {row["plan"]: row for row in links.rows("plan")}
fast = plans["450 GB/s"]
show.formula_table(by_hand(nodes, fast))

# %%
# What is missing in that sum matters as much. Batch norm, ReLU and the additions are charged for their arithmetic, next
# to nothing, although on a GPU they take the time to move their tensors through memory; the batch norm's own
# synchronisation costs nothing here; and no communication hides behind computing.
#
# The speeds are out of data sheets:

assumptions_table(links.rows("hardware")[0])

# %%
# When the link gets slower
# -------------------------
# Bars are what the solver would do, strokes what the first plan, pure data parallelism, would cost on the same links.

step_bars(plans.values(), kept="data parallelism")

# %%

plans_table(plans.values(), first="link of axis 0", caption="The link gets slower")

# %%
# The slower the link, the more layers are taken off it: late layers, with much weight and small images, first.

slow_nodes, slow_edges = plan_rows(links, "12.5 GB/s")
network(slow_nodes, slow_edges, title="A network of 100 Gb/s")

# %%
# The price is resharding: a tensor that is cut otherwise where it is used than where it is made must be moved.

edge_table(slow_edges, caption="Resharding with a network of 100 Gb/s")

# %%
# Is it worth it? The solver knows one kind of all-reduce over both axes: a single ring, at the speed of its slowest
# link. Reduced inside each host first, only a quarter of each gradient has to cross the network, along each of four
# pairs of devices. Priced like that, by hand, plain data parallelism is no slower than the solver's plan on either
# network: the plan answers a cost that need not be paid.

rings_table(nodes, plans.values(), first="link of axis 0")

# %%
# When memory is short
# --------------------
# Layers that repeat work also keep more activations on each device. Give the plan for the slow link less memory; the
# network is ResNet-18 now, whose integer programme is small enough to try several budgets.

SMALL = (
    "auto_parallel/plan.py resnet18 --mesh 2x4 --bandwidth 12.5GB/s,450GB/s --brief "
)
BUDGETS = "--gap 0.01 --memory none,6.8GiB,6.5GiB,6.3GiB,6GiB"
tight = launch(SMALL + BUDGETS, **here, quiet=True)
budget_curve(tight.rows("plan"))

# %%

plans_table(tight.rows("plan"), first="budget", caption="The budget gets smaller")

# %%
# Less memory drives the plan back towards splitting the batch over both axes, whatever the link costs. Below the sum of
# every node's least memory there is no plan; where that is the only budget, it is an error in one sentence.

import textwrap

MLP = "auto_parallel/plan.py mlp --mesh 2x2 "
refused = launch(MLP + "--memory 100MiB", **here, expect_failure=True, quiet=True)
print(textwrap.fill(refused.error, 84))

# %%
# More devices
# ------------
# One batch of 2048 images on 4, 8 and 32 devices; 32 are four hosts of eight, joined by 400 Gb/s.

MESHES = "auto_parallel/plan.py resnet50 --batch 2048 --mesh 2x2,2x4,4x8 --brief"
meshes = launch(MESHES, **here, quiet=True)
plans_table(meshes.rows("plan"), first="mesh", caption="The same batch on more devices")

# %%
# Megatron, rediscovered
# ----------------------
# Two linear layers with an activation between, and a batch that every rank is fed whole. Over NVLink the solver cuts
# the first weight by columns over all four devices and the second by rows, so that nothing is sent between them: the
# split of Megatron-LM, ``Y[b, h01] = X[b, i] × W[i, h01]``, then ``Z[b, o] = Y[b, h01] × W[h01, o]``.

mlp = launch(MLP + "--loader replicated", **here, quiet=True)
plan_table(mlp.rows("node"), caption="Two linear layers on 2 × 2")

# %%
# A block of GPT-2 over the slow link, each rank fed its share of eight sequences: the batch is split over axis 0, the
# weights over axis 1, which people call hybrid parallelism. The last two products, the MLP, are Megatron's pair again.

GPT = "auto_parallel/plan.py gpt-block --mesh 2x4 --batch 8 "
block = launch(GPT + "--bandwidth 12.5GB/s,450GB/s", **here, quiet=True)
products = [row for row in block.rows("node") if row["op"] in ("linear", "matmul")]
plan_table(products, caption="The products in a block of GPT-2 on 2 × 4")

# %%
# The papers, and this page
# -------------------------

alpa = ("Zheng et al. 2022", "https://arxiv.org/abs/2201.12023")
auto = ("Liu et al. 2023", "https://arxiv.org/abs/2302.02599")
linear = [row["strategy"] for row in mlp.rows("node") if row["op"] == "linear"]
took = f"{fast['strategies']} strategies in {fast['seconds']['strategies']:.1f} s"
claims = [
    ("hand-tuned plans", "“match or outperform”", ", then ".join(linear), alpa),
    ("profiling a model", "“minimal time cost”", took, auto),
]
columns = ("claim", "paper", "measured", "source")
show.paper_table(dict(zip(columns, claim, strict=True)) for claim in claims)

# %%
# The first holds for what is predicted on this page; whether the plan is also as fast is for
# :doc:`plot_resnet50` to say. The second holds for models that can be traced: code whose path depends on its input
# cannot, and an operation without a rule stops the search (GELU had none; :doc:`/repairs`).

# %%
# Exercise
# --------
# Above, each rank loads its share of the batch. Upstream's default is that every rank is fed all of it. What does the
# solver do then with the network of 400 Gb/s, and why? Guess, then unfold.

fed = launch(
    PLAN + "--loader replicated --bandwidth 50GB/s,450GB/s --brief", **here, quiet=True
)
# sphinx_gallery_start_ignore
whole_batch, share = fed.rows("plan")[0], plans["50 GB/s"]
(name, count), *_ = whole_batch["layers"]
ratio = show.relative(whole_batch["objective_ms"], share["objective_ms"])
show.answer(
    f"{count} layers get {name}: {show.quantity(whole_batch['compute_ms'], 'ms')} of computing instead of "
    f"{show.quantity(share['compute_ms'], 'ms')}, and a step {ratio} as long.",
    "It is charged for gathering the gradient of the images along the slow axis. Nobody needs that gradient, but the "
    "cost model does not know, and finds it cheaper to let both rows of the mesh do the same work.",
)
# sphinx_gallery_end_ignore

# %%
# Run it yourself
# ---------------
# From anywhere, for any mesh of one or two axes; ``--help`` lists models and hardware, ``--csv`` writes the plan:
#
# .. code-block:: bash
#
#    python -m handson plan resnet50 --mesh 2x4 --bandwidth 50GB/s,450GB/s \
#        --memory 80GiB --csv plan.csv

show.provenance_table({"three links": links})

# %%
# .. handson-downloads:: auto_parallel/plan.py auto_parallel/plan_ilp.py auto_parallel/solver.py
#
# Next: :doc:`plot_resnet50` runs a plan. Papers: Alpa `(Zheng et al. 2022) <https://arxiv.org/abs/2201.12023>`_ and
# Colossal-Auto `(Liu et al. 2023) <https://arxiv.org/abs/2302.02599>`_.
