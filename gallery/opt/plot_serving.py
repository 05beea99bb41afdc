"""
Serve the fine-tuned OPT
========================

A model that answers one request at a time makes everybody else wait. You will fine-tune a small OPT, serve it over
HTTP by one command, and see what it takes to answer many clients at once: requests that share the steps of the model,
each with the answer it would have got alone.

How the fine-tuning itself works is the subject of the lessons before this one.
"""

# %%
# What batching does
# ------------------
# The same requests, all sent at the same moment, to the server that takes one at a time and to the one that lets them
# share its steps. A bar is a request; the number is how many tokens its answer has.

from handson import launch, provenance, show
from handson.show import serving_openapi as openapi
from handson.show import serving_plots as plots
from handson.show import serving_tables as tables

BENCH = "opt/serving_bench.py --text python_reference.txt"
run = launch(BENCH, quiet=True)
plots.timeline(run)

# %%
# A request that is done leaves and makes room for one that waits; nobody waits until a batch is full, or until the
# longest answer of it is done. This is called *continuous batching*.
#
# Start the server
# ----------------
# ``run_clm.py`` teaches the model a few sentences and saves it in a folder; ``opt_fastapi.py`` serves that folder. Both
# are started here as you would start them.

tables.sources(run)

# %%
# What the server says until it is ended:

batched = next(row for row in run.rows("server") if row["label"] == "batched")
print(*batched["log"], sep="\n")

# %%
# Ask it
# ------
# ``POST /generation`` with a prompt. Without ``temperature``, ``top_k`` and ``top_p`` it takes the likeliest token each
# time (*greedy*).

tables.example_table(run)

# %%
# The model knows the sentences it was taught, as well as so short a training allows, and nothing else. With a
# temperature it draws its tokens; a ``seed`` makes the draw repeatable, in whatever company the request is:

seeds = run.rows("seeds")[0]
for question, key in (
    ("the same seed, the same text", "again"),
    ("the same seed, among other requests", "crowd"),
    ("another seed, another text", "other"),
):
    print(f"{question}: {'yes' if seeds[key] else 'no'}")

# %%
# The server describes itself at ``/docs``, from the document at ``/openapi.json``:

openapi.openapi_table(run)

# %%

openapi.openapi_document(run)

# %%
# At ``/docs`` the same document is a page where each request can be tried. What each status means, and what a request
# has to be to get one of them:

openapi.status_table(run)

# %%

tables.refusal_table(run)

# %%
# The same answers
# ----------------
# Tensor parallelism gives each of two ranks half of every layer (``--tp 2``). Neither that nor the company in a batch
# may change an answer. ``load.py``, the load generator, checks every one of them.

TENSOR = (2, 4) if len(provenance.gpus()) >= 4 else (2,)
cut = {f"tp {n}": launch(f"{BENCH} --tp {n}", ranks=n, quiet=True) for n in TENSOR}
tables.parity_table({"tp 1": run, **cut})

# %%
# How fast
# --------
# Each client asks, waits for the answer, and asks again. With 32 clients the server that takes one at a time gets one
# question from each and no more: its latencies there are those of a queue that empties, and Little's law below leaves
# it out. More clients than one only fill its gaps between two answers; but a load of one client has few answers in it,
# and a slow one among them weighs much. With batching a step takes little longer for many requests than for one, until
# the device is busy. A server measured at two loads has two points and no line.
#
# On a GPU the steps of so small a model take as long as the host needs to start them. What else its cores do shows in
# these figures, so that a step can take longer in one load than in another of more clients.

plots.throughput({"tp 1": run, **cut})

# %%
# What a client waits for: half of the requests took at most p50, 99 of 100 at most p99.

print(f"32 clients: {tables.gain(run):.3g} times the answers a second of one at a time")
plots.latency(run)

# %%

tables.load_table({"tp 1": run, **cut})

# %%
# Two ranks exchange their part of every layer's result, twice a layer and step. Whether that pays depends on how much a
# rank computes between two exchanges: in a small model, little. What ``--tp`` is for is the model that one device
# cannot hold.
#
# Two formulas
# ------------
# A closed loop of clients obeys Little's law: as many requests are under way as there are clients, so that the mean
# latency is their number divided by the answers a second.

show.formula_table(tables.little_rows(run), caption="Little's law")

# %%
# The counted time is below where a load ends: its last requests find ever fewer others. The second: every request in a
# batch needs room for the keys and values of the longest text.

show.formula_table(
    tables.memory_rows({"tp 1": run, **cut}), caption="Keys and values of a rank"
)

# %%
# Other engines
# -------------
# The same model and the same questions, by transformers itself: one at a time, in fixed batches, and by its own
# continuous batching, which needs transformers 5. Colossal-AI needs an older one, so it runs in another environment.

tables.engine_table(run)

# %%
# The end
# -------
# ``SIGTERM`` lets the server answer the requests that are inside, and end. (What it counts until then is at
# ``/metrics``, for Prometheus.)

drain = run.rows("drain")[0]
print(
    f"{drain['running']:.0f} requests inside, {drain['answers']} answered; ended after",
    f"{show.quantity(drain['seconds'], 's')} with exit code {drain['exit_code']}",
)

# %%
# The papers, and this page
# -------------------------

show.paper_table(tables.claims(run, cut["tp 2"]))

# %%
# Exercise
# --------
# The server batches and 64 clients ask. How long does a client wait on average if the server answers as many a second
# as with 32? Use Little's law, then unfold.

loads = {row["clients"]: row for row in plots.loads({"": run})["batched"]}
print("32 clients get", show.quantity(loads[32]["per_second"], "answers/s"))
# sphinx_gallery_start_ignore
show.answer(
    f"64 ÷ {show.quantity(loads[32]['per_second'], 'answers/s')} = "
    f"{show.quantity(64 / loads[32]['per_second'], 's')}; "
    f"measured: {show.quantity(loads[64]['mean_ms'], 'ms')}.",
    "A batch holds 32 rows: the other half of the clients wait for a place. On average a step had "
    f"{show.number(loads[32]['mean_batch'])} rows with 32 clients and {show.number(loads[64]['mean_batch'])} with 64.",
)
# sphinx_gallery_end_ignore

# %%
# Run it yourself
# ---------------
# To be typed in ``tutorial_src/opt`` of a checkout; the last command wants a server that runs, such as ``python
# inference/opt_fastapi.py opt-125m --checkpoint DIR``. ``inference/locustfile.py`` gives the same load by `locust
# <https://locust.io>`_, with a page of live charts; ``inference/Dockerfile`` makes the image of this server, with the
# commands of the tutorial.

print(run.command, cut["tp 2"].command, sep="\n")
print("python inference/load.py --clients 64 --seconds 120 --check --checkpoint DIR")

# %%

show.provenance_table({"tp 1": run, **cut})

# %%
# .. handson-downloads:: opt/serving_bench.py opt/inference/opt_fastapi.py opt/inference/load.py
#    opt/inference/locustfile.py opt/inference/compare_continuous.py opt/inference/Dockerfile
#
# The papers: `Orca <https://www.usenix.org/conference/osdi22/presentation/yu>`_ (continuous batching) and
# `vLLM <https://arxiv.org/abs/2309.06180>`_ (paged keys and values).
