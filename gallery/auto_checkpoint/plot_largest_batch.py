"""
The largest batch that pays
===========================

A memory cap sets the largest batch. With checkpoints a larger one fits, but every step recomputes something: does it
pay? You will find the largest batch with and without the solver, both by search, and measure what each batch size
yields under one and the same cap.

How the solver chooses is the subject of :doc:`plot_memory_budget`.
"""

# %%
# Throughput under a cap
# ----------------------
# The cap is for everything: parameters, gradients, buffers and activations.

from handson import launch, show
from handson.show import checkpoint_plots, checkpoint_tables

run = launch("auto_parallel/auto_ckpt_batchsize_test.py", quiet=True)
checkpoint_plots.throughput_against_batch(run)

# %%
# Up to the first dashed line nothing has to run again, and a larger batch uses the device better; the time of a small
# one can be the host's, which starts its kernels, more than the device's. Beyond it each larger batch leaves less
# memory to an image, and Rotor lets more stages run again. The curve ends where it finds no schedule.

checkpoint_tables.batch_table(run, caption="Batch sizes under one cap")

# %%
# The search
# ----------
# Without checkpoints a batch size is tried by running a step: double until one does not fit, then halve what is
# between. With checkpoints nothing has to run: every size in the solver's chain is affine in the batch, so that two
# profiles give the chain at any batch size, and the search asks the solver. Only what it promises is run.

print(*run.log, sep="\n")
run

# %%
# Memory is affine in the batch, so two small steps foretell the largest batch without checkpoints. From the first two
# rows of the table:

setting = run.rows("ckpt_batch_setting")[-1]
rows = run.rows("ckpt_batch")
plain = [row for row in rows if row["method"] == "none"]
one, two = plain[:2]
each = (two["peak_bytes"] - one["peak_bytes"]) / (two["batch"] - one["batch"])
foretold = one["batch"] + (setting["cap_bytes"] - one["peak_bytes"]) / each
rotor = rows[-1]
show.formula_table(
    [
        {
            "what": "largest batch without checkpoints",
            "formula": "b₁ + (cap − M(b₁)) / m",
            "expected": foretold,
            "counted": setting["plain_batch"],
        },
        {
            "what": f"peak of a batch of {rotor['batch']}, checkpointed",
            "formula": "the schedule, followed through the chain",
            "expected": rotor["predicted_bytes"],
            "counted": rotor["peak_bytes"],
            "unit": "B",
        },
    ],
    caption="Foretold and found",
)

# %%
# Here :math:`M(b)` is the peak of everything at batch :math:`b`, and :math:`m` what one more image takes. The search
# goes in steps, so that it may end a little below. What the prediction lacks is mostly the batch itself, which the
# solver's chain takes to be free.
#
# The same gradients
# ------------------
# A cap is not the end of a device's memory. The largest batch for which the plain network, too, has the room:

checkpoint_tables.batch_gradients(run)

# %%
# Does it pay?
# ------------

best = max(rows, key=lambda row: row["per_second"])
show.Table(
    ["with", "batch", "throughput", "÷ the best without"],
    [
        [
            name,
            row["batch"],
            show.quantity(row["per_second"], "images/s"),
            show.relative(
                row["per_second"], max(point["per_second"] for point in plain)
            ),
        ]
        for name, row in (
            ("largest without", plain[-1]),
            ("largest with Rotor", rotor),
            ("highest throughput", best),
        )
    ],
    "What the larger batch yields",
)

# %%
# A larger batch is worth having for its own sake where the training needs one, as in large-batch training. For
# throughput alone it pays only as long as the device has not been busy; once it is, recomputation is what remains, and
# the curve falls.
#
# The paper, and this page
# ------------------------
# Checkmate is another solver for the same problem, an integer programme over arbitrary graphs instead of a chain.

larger = show.relative(setting["rotor_batch"], setting["plain_batch"])
show.paper_table(
    [
        {
            "claim": "a larger input in the same memory",
            "paper": "up to 5.1×",
            "measured": f"{larger} the batch",
            "source": ("Jain et al. 2019", "https://arxiv.org/abs/1910.02653"),
        }
    ]
)

# %%
# The paper's figure is the best of its networks. How far one gets can depend on the cap too: under a tight one, what
# does not grow with the batch, such as gradients before they are added up, leaves a plain step little room.
#
# Exercise
# --------
# How much memory would the largest batch with Rotor take without checkpoints? Use the affine formula, then unfold.

print(f"batch {setting['rotor_batch']}, {each / 2**20:.2f} MiB an image")
# sphinx_gallery_start_ignore
needed = one["peak_bytes"] + (setting["rotor_batch"] - one["batch"]) * each
show.answer(
    f"A batch of {setting['rotor_batch']} would take {show.quantity(needed, 'B')}, "
    f"{show.relative(needed, setting['cap_bytes'])} the cap."
)
# sphinx_gallery_end_ignore

# %%
# Run it yourself
# ---------------
# In ``tutorial_src/auto_parallel``; ``--cap`` takes MiB, ``--model`` another network. Started by hand, the script also
# writes the plot as a picture.

print(run.command)

# %%

show.provenance_table(run)

# %%
# .. handson-downloads:: auto_parallel/auto_ckpt_batchsize_test.py auto_parallel/networks.py
#
# The paper: `Jain et al. 2019 <https://arxiv.org/abs/1910.02653>`_. What a large batch needs to train well is in the
# section on large-batch training.
