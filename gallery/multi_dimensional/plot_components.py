"""
Components of Colossal-AI today
===============================

Colossal-AI was rebuilt while it grew. Of what this tutorial was written for, some is today's interface, some lives on
below ``colossalai.legacy``, and some is gone. You will see what the installed package is made of, which lesson uses
which part, and what older texts ask for in vain.

Nothing is trained here and no process is started: how to use a part is what the other lessons are for.
"""

# %%
# The map
# -------
# Every module of the package belongs to exactly one box, and its size is counted in its files. The rounded links lead
# to the lessons that use a box, the names of its modules to their source, and *Reference* to upstream's own pages.

from handson import show

# sphinx_gallery_thumbnail_path = '_static/components.svg'

package = show.Package("colossalai")  # reads its files, imports nothing
components = show.component_map(package)
components

# %%
# Read it from above. **Launch** gives every process its rank. From there three ways lead on:
#
# - **Booster** wraps a plain training loop, and the boxes below it do the work for its plugins.
# - **legacy** is the interface of 2022, which was put aside rather than removed. The lesson on tensor parallelism
#   stands on it, for a reason that we come to.
# - **Colossal-Auto** traces a model and lets a solver decide how to split it.
#
# All of them share layouts, meshes and kernels.

# %%
# What a plugin divides
# ---------------------
# Every plugin gives each rank its share of the batch. What else it divides decides what a rank must hold; the
# arguments are read from the plugins' own code.

divides = {
    "TorchDDPPlugin": "nothing",
    "TorchFSDPPlugin": "parameters, gradients, optimizer states, by PyTorch",
    "LowLevelZeroPlugin": "optimizer states; from stage 2 on gradients too",
    "GeminiPlugin": "parameters, gradients, optimizer states, in chunks; matrices",
    "HybridParallelPlugin": "layers, matrices, the sequence, optimizer states",
    "MoeHybridParallelPlugin": "the same, and experts",
}
asked = {"stage", "zero_stage", "tp_size", "pp_size", "sp_size", "ep_size"}
plugins = set(package.names("colossalai.booster.plugin")) - {"Plugin"}  # their base
rows = []
for name in sorted(plugins, key=list(divides).index):
    arguments = [word for word in package.arguments(name) if word in asked]
    rows.append([show.code(name), divides[name], ", ".join(arguments) or "—"])
show.Table(["plugin", "divides, beside the batch", "by"], rows, "Booster's plugins")

# %%
# Why a lesson stands on legacy
# -----------------------------
# Because Booster has one way to cut a matrix. The layers of ``colossalai.shardformer`` carry their kind in their
# names, those of legacy have a folder for each kind:

folders = {"1D": "1d", "2D": "2d", "2.5D": "2p5d", "3D": "3d"}
layers = package.names("colossalai.shardformer.layer")
rows = []
for kind, folder in folders.items():
    modules = package.within(f"colossalai.legacy.nn.layer.parallel_{folder}")
    classes = sum(len(module.classes) for module in modules)
    lines = sum(module.lines for module in modules)
    today = sum(folder in name.lower() for name in layers)
    rows.append([kind, classes, lines, today])
columns = ["kind", "legacy: classes", "legacy: lines", "ShardFormer: public layers"]
show.Table(columns, rows, "Tensor parallelism, then and now")

# %%
# What is gone
# ------------
# Every row was checked in the installed files when this page was made. A row that is no longer true stops the build.

show.retired_table(package)

# %%
# What is there and does not work
# -------------------------------
# Where one of these is in a lesson's way, the lesson :doc:`repairs </repairs>` it and says so.

show.unfinished_table(package)

# %%
# The last two, and ``legacy.inference`` above, were found by following imports: a module is dead when importing it
# must run an import that leads nowhere. No host can import those.

dead = [package.modules[name] for name in package.dead]
lines = sum(module.lines for module in dead)
print(f"{len(dead)} of {len(package.modules)} modules are dead: {lines} lines")
print(f"{len(package.nowhere)} of them have an import of their own that leads nowhere")

# %%
# Exercise
# --------
# Some boxes have no lesson. How much of the living code is in them: a tenth, a quarter, a half? Add up the bars, then
# unfold.

unused = components.without_lesson()
part = components.lines(*unused) / components.lines(*components.modules)
show.answer(f"{part:.0%}: {', '.join(unused)}.")

# %%
# Run it yourself
# ---------------
# ``python plot_components.py`` prints the map of the Colossal-AI that is installed beside it. What a person decided
# for this page, which module belongs where and what became of what, is in two tables:
#
# .. handson-downloads:: handson/show/components.py handson/show/retired.py
#
# Next: :doc:`plot_from_pytorch_to_colossalai`, five scripts with the same loss. Upstream's
# `own overview <https://colossalai.org/docs/concepts/colossalai_overview>`_.
