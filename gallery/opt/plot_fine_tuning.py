"""
Fine-tuning OPT: data parallel, ZeRO, Gemini
============================================

Training keeps far more than the model: gradients, master weights, Adam's two moments. Data parallelism keeps all of it
on every rank. ZeRO and Gemini let the ranks share it. You will see what each of them keeps, byte by byte, that they
train the same model, and what sharing costs in time.

Which OPT then fits into how little memory is the question of :doc:`plot_limited_hardware`.
"""

# %%
# What a rank keeps
# -----------------
# The same steps of the same OPT, on the same text, under each strategy, in bf16:

from handson import launch, show
from handson.show import opt_claims, opt_training

COMPARE = "opt/compare.py --train_file python_reference.txt"
one, two, four = (launch(COMPARE, ranks=ranks, quiet=True) for ranks in (1, 2, 4))
opt_training.kept_bars([one, two, four])

# %%
# On one rank there is nobody to share with: ZeRO keeps what data parallelism (``ddp``) keeps, Gemini lacks only the
# gradients, which take the place of its weights, and offloading moves states to the host. With more ranks data
# parallelism keeps what it kept. ZeRO-1 divides the optimizer's states, ZeRO-2 the gradients as well, Gemini also the
# weights, which it gathers chunk by chunk when a layer needs them. Activations shrink everywhere: the ranks share the
# batch.

print(*two.log, sep="\n")

# %%
# The arithmetic
# --------------
# In mixed precision a parameter takes 2 bytes of weight, 2 of gradient, 4 of fp32 master weight and 4 + 4 of Adam's
# moments: 16. A strategy on :math:`w` ranks divides some of them by :math:`w`. The counts come from the tensors
# themselves: the job walks from Colossal-AI's optimizer or its chunks to every tensor they hold and adds up the
# storages, each once.

opt_training.byte_table(two)

# %%
# In fp32 ZeRO still copies its share of the weights, since it does not ask whether they are fp32 already. Gemini has no
# fp32 mode. The activations, which no strategy divides, follow a formula of their own: each layer keeps eight tensors
# of batch × sequence × hidden size and the inner one of the MLP.

opt_training.byte_table(four)

# %%
# How a strategy is chosen
# ------------------------
# A strategy is one plugin of Colossal-AI's Booster. The training step does not know which:

from handson.show.excerpt import excerpt

excerpt("opt/strategies.py", "_plugin")

# %%
# The same model?
# ---------------
# All start from the same weights and read the same batches. Plain PyTorch in one process is the reference, once in
# fp32 and once in bf16.

show.loss_curves(opt_training.curves(two, precision="fp32"), tolerance=1e-3)

# %%

show.loss_curves(opt_training.curves(two, precision="bf16"), tolerance=2e-2)

# %%
# A loss in bf16 differs visibly from one in fp32. Is that the strategies' doing? The last columns say no: one process
# without any strategy is off by about as much, only because its weights have 8 significant bits.

opt_training.parity_table([two, four])

# %%
# What it costs
# -------------
# Sharing is paid for with messages, and with the host's work of starting more operations: the rows of one rank, which
# sends nothing, show that part. Data parallelism sends each gradient once around; Gemini also sends weights, in the
# forward pass and again in the backward pass. ``gemini-auto`` keeps what it has gathered while the GPU has room, and so
# sends less.

opt_training.speed_table([one, two, four])

# %%
# ZeRO and Gemini do not divide in order to be faster. (The ranks share one batch of fixed size here; whether more of
# them are faster at all, the rows of ``ddp`` say.) They are worth their price when the model does not fit otherwise, or
# when the memory they save pays for a larger batch. Strategies with *offload*, and Gemini's placement ``auto``, keep
# states in the host's memory and update them there; they need a GPU and appear where the runs had one. How fast the
# host is, and what else its cores do, shows in their times, and in every short step, whose kernels it has to start.
#
# The papers, and this page
# -------------------------

show.paper_table(opt_claims.claims(two))

# %%
# The paper's *up to* is the limit of many ranks. What its formulas say for as many as were measured stands below it.
#
# Exercise
# --------
# OPT 13B has 12.85 billion parameters. How many bytes would each of eight ranks keep, without activations, under data
# parallelism, ZeRO-2 and Gemini in bf16? Which fit into 80 GB? The table of bytes per parameter has the formulas.

PARAMETERS, RANKS, ROOM = 12.85e9, 8, 80e9
# sphinx_gallery_start_ignore
each = {"ddp": 16, "ZeRO-2": 2 + 14 / RANKS, "Gemini": 14 / RANKS}
kept = {name: PARAMETERS * size for name, size in each.items()}
room = [name for name, size in kept.items() if size < ROOM]
show.answer(
    ", ".join(f"{name} {show.quantity(size, 'B')}" for name, size in kept.items())
    + ".",
    f"A device of {ROOM / 1e9:.0f} GB has room for {' and '.join(room)}.",
)
# sphinx_gallery_end_ignore

# %%
# Run it yourself
# ---------------
# In ``tutorial_src/opt``. The tutorial's own command takes a rank's batch, a memory cap in GB, the model and the number
# of ranks. ``run_clm.sh`` learns text, ``run_clm.py --help`` says the rest.

print("bash ./run_clm_synthetic.sh 16 0 125m 4", two.command, sep="\n")

# %%

show.provenance_table({"1 rank": one, "2 ranks": two, "4 ranks": four})

# %%
# .. handson-downloads:: opt/compare.py opt/run_clm.py opt/run_clm_synthetic.sh opt/run_clm.sh opt/strategies.py
#    opt/memory.py opt/train.py opt/adam.py
#
# Where to go next: :doc:`plot_limited_hardware`. What was repaired to run Gemini on a CPU, a clipping that did nothing
# and a reduction that lost a race with offloading: :doc:`/repairs`. Upstream's page:
# `ZeRO and Gemini <https://colossalai.org/docs/features/zero_with_chunk>`_.
