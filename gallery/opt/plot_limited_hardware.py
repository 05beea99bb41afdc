"""
How large a model fits
======================

To train a model takes several times the memory that its weights do. How large an OPT can you fine-tune on a GPU of 8,
16, 24 or 40 GB, and how much larger does it get with Gemini, ZeRO and the host's memory? You will see what a search
found, and what it costs in speed. And since a long training is worth keeping, you will see one killed and resumed.

What each strategy divides is the subject of :doc:`plot_fine_tuning`.
"""

# %%
# The largest OPT under a cap
# ---------------------------
# ``largest.py`` lets its process have only so much of the GPU, and trains: forward, backward and AdamW, twice. A size
# that fits makes room for the next size, one that does not for the next cap. Every trial is a real training, with each
# layer's activations computed again in the backward pass. On a GPU the caps are GB of :math:`10^9` bytes, while tables
# below have GiB, of which there are 7 % fewer. Without one, the sizes are our own and the caps MiB.

from handson import launch, show
from handson.show import opt_limits as limits

LARGEST = "opt/largest.py"
run = launch(LARGEST, quiet=True)
TASK = "{batch} × {sequence} tokens, {precision}".format(**run.rows("search")[0])
limits.largest_bars(limits.by_cap(run), [run], title=f"one rank, {TASK}")

# %%
# An arrow: the search ended before the next size was tried.
#
# **ddp** is plain data parallelism, on one rank plain PyTorch. **gemini-static** keeps everything on the GPU too, in
# chunks. The others need a GPU, since they put things elsewhere: **zero2-offload** the optimizer's states into the
# host's memory, **gemini-offload** all of it, so that the GPU has only what a layer needs just now. **gemini-auto**
# keeps and updates all of it in the host's memory too; what it has brought to the GPU it takes away only as the GPU
# fills.
#
# A size that trained is not trained again under a larger cap: its speed is the one under the smallest cap that it fits.

limits.largest_table(run, caption="The largest OPT that trains, and its speed")

# %%
# The trials, as the search made them:

print(*run.log, sep="\n")

# %%
# What the formula below puts far above a cap is not tried on a GPU, and the search has a time limit: "not tried" is not
# "too large". The cap is on what PyTorch's allocator reserves, the formula on what tensors take: a size whose formula
# is just below a cap may not fit. Each trial on a GPU has a process of its own, since one that ran out of memory leaves
# much of it taken.
#
# Larger, but how much slower? Compare the speeds of one size under two strategies. With offload every weight travels
# to the GPU and every gradient back, and the CPU updates the states: this is what the memory costs. Such a speed is a
# rough figure, for a long step is timed once, and what else the host's cores do shows in it. From
# :math:`2^{31}` parameters on, Gemini's chunks are not pinned in the host's memory here, since a pinned block is
# rounded up to a power of two; where the speed falls by more than the size grows, that may be part of the reason.
#
# The formula
# -----------
# AdamW in mixed precision keeps 16 bytes a parameter: 2 of weight, 2 of gradient, 4 of fp32 master weight, 4 + 4 of
# its two moments. Gemini puts a gradient where its weight was, which saves 2. Beside that, a checkpointed layer keeps
# its input, and the end the scores of every token over the whole vocabulary; in the update, there are gradients in
# fp32, up to :math:`2^{24}` of them at once. Under ZeRO on the GPU it is the rank's whole share of them, :math:`4/w`
# bytes a parameter on :math:`w` ranks: Colossal-AI widens it before it calls the optimizer.

limits.peaks_table(run, caption="Peak memory by formula, and measured")

# %%
# More ranks
# ----------
# Ranks that share the states reach further without the host. Here is the same on the CPU for one, two and four ranks,
# at sizes of our own and under one cap: live tensors are counted. One rank is refused the tensor that is too many; of
# several, the peak of the fullest decides afterwards.

small = [launch(LARGEST, ranks=n, preset="laptop", quiet=True) for n in (1, 2, 4)]
cap = min(small[1].value("search", "caps"))
limits.largest_bars(
    limits.by_ranks(small, cap=cap), small, title=f"CPU, {cap:g} MiB a rank"
)

# %%
# ZeRO takes more than its formula says here: it gathers gradients in buckets of up to 12 Mi elements, at these sizes
# all of them. Gemini takes more, too: its chunks have gaps, and those that a layer needs are gathered whole.
#
# And with all the memory of real GPUs, where there are some. The formula chooses the size, since a rank that ran out
# of memory would leave the others waiting.

several = [launch(LARGEST, ranks=n, quiet=True) for n in (2, 4)]
limits.ranks_table(several + small[1:], caption="The largest OPT on several ranks")

# %%
# Killed and resumed
# ------------------
# ``kill_and_resume.py`` fine-tunes on real text three times: to the end; killed, every rank by SIGKILL, between two
# checkpoints; and resumed from the last of them.

KILL = "opt/kill_and_resume.py --strategy zero2 --precision bf16"
killed = launch(KILL, ranks=2, preset="laptop")
limits.resume_plot(killed)

# %%
# Squares in dots on the line mean that nothing was lost; the table below has the largest difference. It takes more
# than weights: Colossal-AI saves them in bf16, and a training that goes on from those drifts away. So each rank also
# keeps its share of the fp32 master weights and of the moments; and which sequences make a batch is a function of the
# step alone.
#
# A checkpoint is written under another name and renamed when it is whole, with a manifest of sizes and SHA-256. A kill
# while it is written leaves the one before, and a truncated file is refused by its name.
#
# What others can load
# --------------------
# The exported folder is a plain Hugging Face checkpoint, which ``OPTForCausalLM.from_pretrained`` loads. With the
# tokenizer that ``run_clm.py`` puts beside it, so does the server of the next lesson.

limits.files_table(killed, caption="The exported model")

# %%

limits.resume_table({"zero2": killed}, caption="Killed, resumed, exported")

# %%
# The last column is the largest difference between the logits of the model under its strategy and of plain
# transformers.
#
# The papers, and this page
# -------------------------

zero = ("Ren et al. 2021", "https://arxiv.org/abs/2101.06840")
star = ("Fang et al. 2021", "https://arxiv.org/abs/2108.05818")
found = limits.against_ddp(run) if run.preset == "gpu" else "needs a GPU"
claims = [
    ("largest on one GPU", "13 billion in 32 GB, 10×", found, zero),
    ("largest, in chunks", "12 billion on 8 GPUs, 2×", "not measured here", star),
]
keys = ("claim", "paper", "measured", "source")
show.paper_table([dict(zip(keys, row, strict=True)) for row in claims])

# %%
# A size with "at least" is where the search stopped at its time limit. The second paper's factor is over the work
# before it, which also offloads. How far offloading reaches is decided by the host's memory, at 12 to 16 bytes a
# parameter, and by patience. The search stops at the limits that its log names; ``--host_gb`` and ``--seconds`` set
# others.
#
# Exercise
# --------
# Which published OPT can four GPUs of 24 GB hold with gemini-static, before activations? Use 14 bytes a parameter,
# divided by the ranks, then unfold. Would you train that one?

EACH = 24e9 / (14 / 4)
print(f"{EACH / 1e9:.1f} billion parameters")
# sphinx_gallery_start_ignore
show.answer(
    f"{EACH / 1e9:.2f} billion parameters: the 6.7b, just. Its activations would not ",
    "fit beside: to train, take the 2.7b, or offload a part.",
)
# sphinx_gallery_end_ignore

# %%
# Run it yourself
# ---------------
# In ``tutorial_src/opt``:

print(run.command, several[0].command, killed.command, sep="\n")

# %%

searches = {f"largest x{r.ranks}, {r.preset}": r for r in [run, *several, *small]}
show.provenance_table({**searches, "killed": killed})

# %%
# .. handson-downloads:: opt/largest.py opt/search.py opt/trial.py opt/ladder.py opt/kill_and_resume.py
#    opt/compare_export.py opt/supervised.py opt/checkpoints.py opt/manifest.py opt/run_clm.py opt/strategies.py
#    opt/models.py opt/text.py opt/tokens.py opt/hub.py opt/train.py opt/memory.py opt/adam.py opt/settings.py
#    opt/report.py opt/python_reference.txt opt/python_reference.LICENSE.txt
#
# Where to go next: :doc:`plot_serving`, which serves what was fine-tuned.
