"""
A memory budget and where it leads
==================================

The backward pass needs what the forward pass computed, and keeping it all is most of a training step's memory. It can
be thrown away and computed again. Here you name a memory budget, and Colossal-AI's Rotor solver decides which stages
of the network run again so that the step fits and takes least time. You will see where its choices fall, check that
every step keeps to its budget and has the plain network's gradients, and compare it with what one does by hand.

This lesson is about one device and about activations. Parameters, gradients and optimizer states, which other lessons
divide among devices, are left out of every number here.
"""

# %%
# Which stages run again
# ----------------------
# One script traces ResNet-50, solves it for one budget after another, and runs every schedule.

from handson import launch, show
from handson.show import checkpoint_map, checkpoint_plots, checkpoint_tables

SWEEP = "auto_parallel/auto_ckpt_solver_test.py --model "
resnet = launch(SWEEP + "resnet50", quiet=True)
checkpoint_map.recompute_map(resnet)

# %%
# A row is a schedule, a column a stage: as much of the network as hangs on one value, for a ResNet a block. With less
# memory more activations are thrown away: by more stages, by those that save more, or by the same ones more often. A
# stage in a stronger tone runs again more than once: what was computed a second time has been thrown away once more.
# Where there is room for everything, a stage may still be marked, or not, if that costs nothing: when its backward
# pass needs only its input, PyTorch ends the recomputation at once ("skipped at an end", below).
#
# A stage is cheap to run again where it saves much for each millisecond of its forward pass. Here are the stages, added
# up by layer.

checkpoint_tables.stage_table(resnet, caption="ResNet-50: what stages save and cost")

# %%
# "Nodes" is what upstream's solver takes for time: its profile leaves times at zero, and a view then weighs as much as
# a convolution. Our script runs every stage alone and gives the solver measured times. These runs also show
# what a stage takes beyond the tracer's estimate: gradients before they are added up, workspace of kernels. That is its
# margin; it is part of "extra in backward", which the solver is given.
#
# Does a step keep to its budget?
# -------------------------------
# The log of the run: for every budget the predicted and the measured peak, and the time of a step.

print(*resnet.log, sep="\n")
resnet

# %%

checkpoint_plots.peak_against_budget(resnet)

# %%

checkpoint_tables.budget_table(resnet, caption="ResNet-50: budgets and what they give")

# %%
# The same for GPT-2
# ------------------
# In a transformer every block saves the same. Rotor sees its attention half and its MLP half as stages of their own.

gpt = launch(SWEEP + "gpt2", quiet=True)
checkpoint_map.recompute_map(gpt)

# %%

checkpoint_tables.budget_table(gpt, caption="GPT-2: budgets and what they give")

# %%
# The last stage, output layer and loss, sets the smallest budget: the logits of every token over the whole vocabulary
# have to fit, and their gradients.
#
# Where nothing runs again, the peak follows a short formula. When stage :math:`i` runs backward there are the input,
# what the stages up to :math:`i` have saved, :math:`\bar x_j`, the gradient of its output, as large as the output
# :math:`x_i`, and its extra memory :math:`e_i`. The peak is the largest of these sums. The solver's prediction is the
# same without the input, which its chain takes to be free: for images it counts, for tokens hardly.

networks, formula = {"ResNet-50": resnet, "GPT-2": gpt}, []
for label, run in networks.items():
    alive, sums = run.value("ckpt_setting", "input_bytes"), []
    for stage in run.rows("ckpt_stage"):
        alive += stage["saved_bytes"]
        sums.append(alive + stage["output_bytes"] + stage["extra_bytes"])
    formula.append(
        {
            "what": f"{label}, nothing runs again",
            "formula": "maxᵢ (input + Σ x̄ + xᵢ + eᵢ)",
            "expected": max(sums),
            "counted": run.rows("ckpt_point")[0]["peak_bytes"],
            "unit": "B",
        }
    )
show.formula_table(formula)

# %%
# The same gradients
# ------------------
# Each schedule ran once from the same weights and on the same batch as the plain network.

checkpoint_tables.gradient_table(networks)

# %%
# One thing does differ: a batch norm that runs twice updates its running averages twice in a step. No gradient depends
# on them, but evaluation does.
#
# Against doing it by hand
# ------------------------
# By hand one wraps blocks in ``torch.utils.checkpoint``: the first few of them here, or all. Chen's solver, the other
# one in Colossal-AI, knows no budget; it cuts the network into about :math:`\sqrt{n}` segments. Beside each, Rotor
# may use just as much memory as the baseline took.

checkpoint_plots.time_against_peak(resnet)

# %%

checkpoint_plots.time_against_peak(gpt)

# %%

checkpoint_tables.baseline_table(
    networks, caption="Baselines, and Rotor in as much memory"
)

# %%
# A schedule by hand is one that Rotor could choose too, so by the solver's times it is never faster. By the clock it
# can be, by a little, where these times are off. One detail matters most. PyTorch ends a recomputation as soon as
# backward has all it needs: where a region ends with a block, the block's last matrix product is not computed again.
# To upstream's solver all cuts are alike. Our script tries to measure what is skipped when a recomputation ends with
# a stage ("skipped at an end" in the tables of stages), and the solver counts what it found. Where it found nothing
# (—) for a block's second half, Rotor lacks this detail, and a schedule by hand can be ahead.

checkpoint_tables.stage_table(gpt, caption="GPT-2: what stages save and cost")

# %%
# ``torch.compile`` has a budget of its own: the share that it saves of what the compiler would save by itself. Every
# block is compiled by itself here, and the compiler decides operator by operator.

checkpoint_tables.compile_table(networks, caption="Compiled blocks")

# %%
# That budget says what is saved, not how high the peak is, so it cannot be set to a number of bytes. The compiler has
# a choice that Rotor lacks: Rotor runs a stage again as a whole, the compiler can keep a block's matrix products and
# compute only what is cheap between them again. With inductor, on a GPU, it also fuses operators, so that time and
# memory differ from the plain network's even where nothing runs again; with aot_eager, on a CPU, operators run one by
# one, and a decomposed batch norm or GELU takes more of them. Other kernels round otherwise, and batch norm amplifies
# that: hold the compiled gradients against "plain, rounded otherwise" above.
#
# What solving takes
# ------------------
# Rotor is a dynamic programme over memory, first and last stage. Upstream's C source is missing from the published
# package, and its Python fills the table one entry at a time; here numpy fills the same table, entry for entry, for all
# amounts of memory at once (:doc:`repair rotor </repairs>`). "Solved in", above, is its time.

checkpoint_tables.setting_table(networks)

# %%
# The papers, and this page
# -------------------------

points = [row for row in resnet.rows("ckpt_point") if row["feasible"]]
rotor = [row for row in points if row["method"] == "rotor" and row["relative"] <= 1.3]
least = min(rotor, key=lambda row: row["peak_bytes"])
smaller = show.relative(points[0]["peak_bytes"], least["peak_bytes"])
longer = {
    "rotor": least["relative"] - 1,
    "chen": next(row["relative"] - 1 for row in points if row["method"] == "chen"),
}
forward, backward = (
    sum(stage[f"{way}_seconds"] for stage in resnet.rows("ckpt_stage"))
    for way in ("forward", "backward")
)
pairs = [
    pair
    for run in networks.values()
    for pair in checkpoint_tables.beside_baselines(run)
]
wins = sum(bool(rotor) and rotor["relative"] < row["relative"] for row, rotor in pairs)

# %%

sublinear = ("Chen et al. 2016", "https://arxiv.org/abs/1604.06174")
optimal = ("Beaumont et al. 2019", "https://arxiv.org/abs/1911.13214")
share = forward / (forward + backward)
more = "{:.0%} more time".format
claims = [
    ("a deep ResNet in less memory", "48 G to 7 G, 30 % more time",
     f"{smaller} less, {more(longer['rotor'])}", sublinear),
    ("√n segments cost one more forward pass", "one forward pass",
     f"{more(longer['chen'])}; forward is {share:.0%} of a step", sublinear,
     "Colossal-AI's Chen keeps the first stages and what follows its last cut; "
     "PyTorch ends a recomputation early"),
    ("Rotor beats other checkpointing", "consistently",
     f"faster in {wins} of {len(pairs)} comparisons", optimal),
]  # fmt: skip
columns = ("claim", "paper", "measured", "source", "why")
show.paper_table(dict(zip(columns, claim, strict=False)) for claim in claims)

# %%
# Chen's ResNet had 1,000 layers; the deeper the network, the more there is to save. The second paper is Rotor's own:
# its comparison is over many networks and sizes, ours over the baselines above.
#
# Exercise
# --------
# By the solver's figures no schedule can do without this: while stage :math:`i` runs backward, the stage's input, what
# it saves, the gradient of its output and its extra memory are all there. Which stage of ResNet-50 needs most, and how
# far above that is the smallest budget that was found? Start from here, then unfold.

stages = resnet.rows("ckpt_stage")
print(stages[0])
# sphinx_gallery_start_ignore
inputs = [0, *(stage["output_bytes"] for stage in stages[:-1])]
needs = {
    stage["name"]: before
    + stage["saved_bytes"]
    + stage["output_bytes"]
    + stage["extra_bytes"]
    for before, stage in zip(inputs, stages, strict=True)
}
most = max(needs, key=needs.get)
smallest = min(row["budget_bytes"] for row in points if row["budget_bytes"])
show.answer(
    f"The stage of {most} needs {show.quantity(needs[most], 'B')}.",
    f"The smallest feasible budget is {show.quantity(smallest, 'B')}, "
    f"{show.relative(smallest, needs[most])} of it: part of a budget is kept back, "
    "and the search for the smallest goes in steps.",
)
# sphinx_gallery_end_ignore

# %%
# Run it yourself
# ---------------
# In ``tutorial_src/auto_parallel``. Started by hand, the script also writes the two plots as a picture.

print(resnet.command)
print(gpt.command)

# %%

show.provenance_table(networks)

# %%
# .. handson-downloads:: auto_parallel/auto_ckpt_solver_test.py auto_parallel/networks.py
#
# What a solver does for the batch size: :doc:`plot_largest_batch`. The papers: `Chen et al. 2016
# <https://arxiv.org/abs/1604.06174>`_ and `Beaumont et al. 2019 <https://arxiv.org/abs/1911.13214>`_. PyTorch's own
# checkpointing: `torch.utils.checkpoint <https://docs.pytorch.org/docs/stable/checkpoint.html>`_.
