"""
ResNet-50: traced, solved, trained
==================================

Ordinary code for ResNet-50 goes in, and a model that is divided over the ranks comes out. Colossal-AI traces it, lists
how each operation could be divided, lets an integer program choose, and inserts the communication. You will see what
was chosen, check that it is the same model, and hold the solver's prediction against the clock and the memory.

This lesson runs plans on the ranks that are here. Planning for machines that are not is in :doc:`plot_plan_a_mesh`.
"""

# %%
# What the solver chose
# ---------------------
# Four ranks in a 2 × 2 mesh, and one global batch. The solver weighs computing against communication, so it must know
# how fast both are. This once we tell it (a device, its links, their latency), so that everybody gets the same plan.

from handson import launch, show
from handson.show import sharded_tables
from handson.show.plan_network import network
from handson.show.plan_plots import predicted_measured
from handson.show.plan_tables import edge_table, plan_rows, plan_table

RESNET = "auto_parallel/auto_parallel_with_resnet.py -s "
SPEEDS = "--speeds 2e9 1e10 1e-4 "
four = launch(RESNET + "--mesh 2x2 --check --budgets 2 " + SPEEDS, ranks=4, quiet=True)
nodes, edges = plan_rows(four, "solver")
network(nodes, edges, title="ResNet-50 on 2 × 2")

# %%
# The log says the same, one line a node, as in Colossal-AI's tutorial; then what it costs to change how a tensor is
# divided between two nodes.

print(*four.log[:8], sep="\n")
print(*[line for line in four.log if line.startswith("Edge cost")][:3], sep="\n")

# %%
# Read ``layer1_0_conv1 S01R = S01R x RR`` as :math:`Y = X \times W`: the first dimension of input and output, the
# batch, is split over both axes of the mesh (``S01``), and the weight is whole on every rank (``R``). That is data
# parallelism, ``Y[b01, o] = X[b01, i] × W[i, o]`` in the :doc:`site's notation </notation>`. ``RS01 = RR x RS01``
# splits the output channels instead, ``Y[b, o01]``: cheaper where the images have become small and the weights large.
#
# Every node, and what the cost model thinks of it:

plan_table(nodes, caption="The plan for ResNet-50 on 2 × 2")

# %%
# Where a tensor is divided otherwise than its reader wants it, it is resharded:

edge_table(edges, caption="Resharding in the plan for 2 × 2")

# %%
# Is it still the same model?
# ---------------------------
# Each rank holds its blocks and is fed the global batch; the same weights run whole on one device. In fp64 the output
# and every gradient must agree to a relative 1e-9. A second job is a line of two ranks, over NCCL where this host has
# two GPUs; its plan stands on speeds that were measured.

two = launch(RESNET + "--mesh 1x2 --check --measure", ranks=2, quiet=True)
sharded_tables.parity({"2 × 2": four, "1 × 2": two})

# %%
# Two things make this table what it is. Upstream's ``WITH SYNC_BN`` is a label: each rank normalised its share of the
# batch alone, and here it does not any more (repair ``sync_bn``, :doc:`/repairs`). And the residual branches start at a
# tenth of their size, since a ResNet-50 with random weights magnifies rounding so much that fp32 cannot be compared.
#
# The prediction, and the clock
# -----------------------------
# On two ranks the script first measured what they can do. The links are timed by Colossal-AI's profiler; computing by
# one device training on its share of the batch.

sharded_tables.links(two)

# %%
# With these speeds the solver made its plan. Beside it are two plans that nobody searched for, ``all data`` parallel
# and ``all replicated``, which run by the same machinery; and PyTorch's own data parallelism, with batch norm as it
# comes and with batch norm over the whole batch, which the other plans have.

measured = sharded_tables.measured_plans(two)
predicted_measured(measured, title=two.provenance["hardware"])

# %%

sharded_tables.against_truth(two)

# %%

import textwrap

print(textwrap.fill(sharded_tables.verdict(two), 84))

# %%
# Three things are wrong in the cost model on any host. Collectives of batch norm are charged nothing, two for each
# layer whose batch is split. It charges for gathering the gradient of the input images, which nobody needs. And it
# adds communication to computing, while DDP sends gradients in a few large buckets as the backward pass goes on.
# Where ranks share the processor's cores, as on a laptop, collectives also wait for ranks that have not had their turn.
#
# What data parallelism must send is no secret, and is counted to the byte:

(ddp,) = (row for row in two.rows("memory", rank=0) if row["plan"] == "DDP")
(sent,) = (row for row in two.rows("communication", rank=0) if row["plan"] == "DDP")
reduced = [row for row in sent["rows"] if row["collective"] == "all_reduce"]
gradients = {
    "what": "DDP's gradients",
    "formula": "2 (P − 1)/P × 4 bytes × parameters",
    "expected": 2 * (two.ranks - 1) / two.ranks * ddp["parameter_bytes"],
    "counted": sum(row["wire_bytes"] for row in reduced),
    "unit": "B",
}
show.formula_table([gradients])

# %%
# Less memory
# -----------
# Each node also has a memory cost, and the solver takes a budget. Here are plans under budgets between what the free
# plan takes and the least that every plan needs; where there are GPUs, also with small images, so that weights are a
# larger part of the memory.

budgets = {"2 × 2": four, "1 × 2": two}
if two.preset == "gpu":
    SMALL = "--mesh 1x2 --batch 64 --size 64 --budgets 3"
    budgets["1 × 2, small images"] = launch(RESNET + SMALL, ranks=2, quiet=True)
sharded_tables.memory(budgets)

# %%
# The estimate adds up what every node reads and writes, and the gradients of it, as if all were alive at once; and
# the gradient of a convolution's weight twice, once among the activations. So it is an upper bound, and it is loose:
# a smaller budget lowers the prediction, if only a little, but the peak need not follow. Below the least there is no
# plan, and one sentence:

refused = four.rows("no_plan")[-1]["reason"]
print(textwrap.fill(refused, 84))

# %%
# The paper, and this page
# ------------------------

times = {row["plan"]: row["measured_ms"] for row in measured}
ratio = show.relative(times["solver"], times["DDP"])
claim = {
    "claim": "solved against by hand",
    "paper": "“match or outperform”",
    "measured": f"{ratio} the step of DDP, {two.provenance['hardware']}",
    "source": ("Zheng et al. 2022", "https://arxiv.org/abs/2201.12023"),
}
show.paper_table([claim])

# %%
# Exercise
# --------
# In the plan for 2 × 2, how many collectives a step belong to batch norm, and were charged nothing? Not every one of
# these layers has its batch split. Count in the table above, then unfold.

batch_norms = [row for row in nodes if row["op"] == "batch_norm"]
# sphinx_gallery_start_ignore
split = [row for row in batch_norms if row["strategy"].endswith("SYNC_BN")]
show.answer(
    f"Of {len(batch_norms)} batch norms {len(split)} split the batch, and each of these needs one collective forward "
    f"and one backward: {2 * len(split)}.",
    "Forward gathers every rank's mean and variance; backward adds up two sums over the batch, which are also the "
    "gradients of the layer's weight and bias.",
)
# sphinx_gallery_end_ignore

# %%
# Run it yourself
# ---------------
# In ``tutorial_src/auto_parallel``; ``colossalai run --nproc_per_node 4 auto_parallel_with_resnet.py -s`` measures the
# links, plans and trains; ``--csv plan.csv`` writes the plan as a table. pulp's own CBC solves; there is nothing else
# to install.

print(two.command)

# %%

show.provenance_table({"2 × 2": four, "1 × 2": two})

# %%
# .. handson-downloads:: auto_parallel/auto_parallel_with_resnet.py auto_parallel/solver.py auto_parallel/sharded.py
#
# Next: :doc:`plot_plan_a_mesh`. Papers: Alpa `(Zheng et al. 2022) <https://arxiv.org/abs/2201.12023>`_, whose integer
# program this is, and Colossal-Auto `(Liu et al. 2023) <https://arxiv.org/abs/2302.02599>`_. How runs are made,
# recorded and kept honest: :doc:`/how_it_works`.
