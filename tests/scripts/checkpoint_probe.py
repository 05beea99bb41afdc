"""What the tests of networks and auto-checkpoint ask of a live rank: `checkpoint_probe.py QUESTION` records one row."""

import itertools
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tutorial_src" / "auto_parallel"))

import torch
from handson import repairs, worker
from handson.repairs import auto_checkpoint, auto_trace, noise

SLOTS = 150  # of memory, where tables are compared: upstream's Python takes seconds for more


def inputs_of(name: str, batch: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Images of 32 x 32, or tokens and labels, for a network of this name."""
    import networks

    if name in networks.RESNETS:
        return {"x": torch.randn(batch, 3, 32, 32, device=device)}
    shape = (batch, networks.GPTS[name].positions)
    high = networks.GPTS[name].vocabulary
    return {key: torch.randint(high, shape, device=device) for key in ("tokens", "labels")}


def network(name: str) -> torch.nn.Module:
    """A ResNet or a GPT by its name."""
    import networks

    return networks.resnet(name) if name in networks.RESNETS else networks.gpt(name)


def trace() -> None:
    """Whether each tracer's generated code computes what the network computes, and how its nodes are called."""
    from colossalai._analyzer.fx.graph_module import ColoGraphModule
    from colossalai._analyzer.fx.tracer.tracer import ColoTracer
    from colossalai.fx import symbolic_trace

    for name in ("resnet18", "tiny"):
        model, inputs = network(name), inputs_of(name, 2)
        shapes = {key: value.to("meta") for key, value in inputs.items()}
        analyzed = ColoGraphModule(model, ColoTracer(bias_addition_split=True).trace(model, meta_args=shapes))
        older = symbolic_trace(model, meta_args=shapes)
        expected = model(*inputs.values())
        off = [float((module(*inputs.values()) - expected).abs().max()) for module in (analyzed, older)]
        worker.record("answer", model=name, off=off, nodes=[node.name for node in analyzed.graph.nodes][:8])


def table() -> None:
    """Upstream's table in Python and ours: entries that differ, and the seconds of both; for chains of two networks."""
    import rotor
    from ckpt_chain import trace

    for name, batch in (("resnet50", 16), ("small", 1)):
        with torch.device("meta"):
            model = network(name)
        traced = trace(model, inputs_of(name, batch, "meta"))
        drawn = torch.Generator().manual_seed(0)
        stages = len(traced.chain)
        traced.chain.ftime = (torch.rand(stages, generator=drawn) + 0.1).tolist()
        traced.chain.btime = [*(2 * time for time in traced.chain.ftime), 0.0]
        solver = rotor.Rotor(traced, 0.6 * traced.saved_bytes, SLOTS)
        began = time.process_time()
        cost, back = solver._compute_table_c(solver.chain, SLOTS)
        ours = time.process_time()
        theirs_cost, theirs_back = solver._compute_table(solver.chain, SLOTS)
        theirs = time.process_time()
        wrong = finite = 0
        for m in range(SLOTS + 1):
            for i in range(stages + 1):
                for j in range(i, stages + 1):
                    expected = theirs_cost[m][i][j]
                    wrong += expected != cost[m, i, j]
                    if i < j and expected != float("inf"):
                        finite += 1
                        keep, *run_on = theirs_back[m][i][j]
                        wrong += (keep, *(run_on or [0])) != (bool(back[m, i, j, 0]), back[m, i, j, 1])
        sequences = [
            repr(solver._backtrack(solver.chain, 0, stages, SLOTS - solver.chain.x[0], *tables))
            for tables in ((cost, back), (theirs_cost, theirs_back))
        ]
        worker.record(
            "answer", model=name, stages=stages, wrong=int(wrong), finite=finite, same=sequences[0] == sequences[1],
            seconds={"ours": ours - began, "theirs": theirs - ours},
        )  # fmt: skip


def medium() -> None:
    """The seconds that GPT-2 medium's schedule takes to solve, start to end."""
    import rotor
    from ckpt_chain import trace

    with torch.device("meta"):
        model = network("medium")
    traced = trace(model, inputs_of("medium", 8, "meta"))
    traced.chain.ftime = [1.0] * len(traced.chain)
    traced.chain.btime = [*[2.0] * len(traced.chain), 0.0]
    began = time.process_time()
    found = rotor.solve(traced, 0.5 * traced.saved_bytes)
    seconds = time.process_time() - began
    worker.record("answer", seconds=seconds, again=found.again, peak=found.peak_bytes, saved=traced.saved_bytes)


def rerun() -> None:
    """A schedule's own count of how often each stage runs again, and how often its first layer really did."""
    import ckpt_tasks
    import rotor
    from ckpt_chain import profile, trace
    from ckpt_measure import gradients, peak_and_difference

    task = ckpt_tasks.build("gpt2")
    plain = partial(task.step, task.model)
    plain()
    reference = gradients(task)
    traced = trace(task.model, task.inputs)
    profile(traced, task.inputs, repeats=1)
    budget = rotor.smallest_budget(traced)
    found = rotor.solve(traced, budget)
    run = traced.module(found.graph)
    counts = dict.fromkeys((traced.label(index) for index in range(len(traced.stages))), -1)
    modules = {name.replace(".", "_"): module for name, module in task.model.named_modules()}
    for label in counts:
        modules[label].register_forward_pre_hook(lambda *_, label=label: counts.update({label: counts[label] + 1}))
    measured, off = peak_and_difference(task, partial(task.step, run), reference)
    worker.record(
        "answer", again=found.again, counted=list(counts.values()), budget=budget, predicted=found.peak_bytes,
        measured=measured, difference=off,
    )  # fmt: skip


def by_hand() -> None:
    """What Rotor's schedule costs beside every schedule by hand, k blocks of two stages, in just as much memory.

    Once with every recomputation run to its end, once with a part of the second stage skipped, as torch skips it.
    """
    import rotor
    from ckpt_chain import trace
    from colossalai.auto_parallel.checkpoint.operation import Backward, ForwardCheck, ForwardEnable, ForwardNograd

    with torch.device("meta"):
        model = network("small")
    traced = trace(model, inputs_of("small", 1, "meta"))
    chain, stages = traced.chain, len(traced.chain)
    chain.ftime = [1.0 + 0.5 * (index % 2) for index in range(stages)]
    chain.btime = [*(2 * time for time in chain.ftime), 0.0]
    for blocks, skipped in itertools.product(range(1, 13), (0.0, 0.6)):
        chain.skipped = [skipped * (index and index % 2 == 0) for index in range(stages)]
        first, inside = 1, range(1, 1 + 2 * blocks)  # stage 0 is the embedding
        forward = [
            ForwardEnable(i) if i not in inside else ForwardCheck(i) if (i - first) % 2 == 0 else ForwardNograd(i)
            for i in range(stages)
        ]
        backward = [Backward(i) for i in reversed(range(1 + 2 * blocks, stages))]
        for i in reversed(range(first, 1 + 2 * blocks, 2)):
            backward += [ForwardEnable(i), ForwardEnable(i + 1), Backward(i + 1), Backward(i)]
        peak = rotor.peak_bytes([*forward, *backward, Backward(0)], chain)
        cost = traced.plain_seconds + sum(chain.ftime[i] - chain.skipped[i] for i in inside)
        found = rotor.solve(traced, peak, slots=1000, headroom=0.0)
        worker.record(
            "answer", blocks=blocks, skipped=skipped, by_hand=cost, rotor=found.step_seconds,
            kept=found.peak_bytes <= peak,
        )  # fmt: skip


def skipped() -> None:
    """What a recomputation that ends with a stage saves of its forward pass, as a share of it; stage by stage.

    The clock counts floating-point operations instead of seconds, so that a busy machine changes nothing.
    """
    import ckpt_chain
    import ckpt_tasks
    from torch.utils.flop_counter import FlopCounterMode

    task = ckpt_tasks.build("gpt2")
    traced = ckpt_chain.trace(task.model, task.inputs)
    with FlopCounterMode(display=False) as counter:
        ckpt_chain._mark = lambda device: counter.get_total_flops()
        ckpt_chain.profile(traced, task.inputs, repeats=1)
    chain = traced.chain
    shares = {traced.label(i): chain.skipped[i] / chain.ftime[i] for i in range(len(chain)) if chain.ftime[i]}
    worker.record("answer", shares=shares)


def count() -> None:
    """The counted peak of a small network, plain and with all of it checkpointed."""
    from ckpt_tasks import Task
    from handson.measure.memory import PeakMemory
    from torch.utils.checkpoint import checkpoint

    layers = [torch.nn.Sequential(torch.nn.Linear(128, 128, bias=False), torch.nn.ReLU()) for _ in range(4)]
    model = torch.nn.Sequential(*layers)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    x = torch.randn(512, 128)
    task = Task("hand", model, {"x": x}, None, 512, "512 x 128")
    peaks = []
    for run in (model, lambda value: checkpoint(model, value, use_reentrant=False)):
        with PeakMemory(alive=[*task.fixed, x]) as memory:
            run(x).sum().backward()
        peaks.append(memory.peak_bytes - memory.start_bytes)
    worker.record("answer", peaks=peaks, activation=x.nbytes, weight=layers[0][0].weight.nbytes)


def chen() -> None:
    """Whether a network checkpointed by Chen's solver has the plain network's gradients, in less memory."""
    import ckpt_tasks
    from ckpt_chain import trace
    from ckpt_measure import gradients, peak_and_difference
    from colossalai.auto_parallel.checkpoint import CheckpointSolverChen

    task = ckpt_tasks.build("gpt2")
    plain = partial(task.step, task.model)
    plain()
    reference = gradients(task)
    traced = trace(task.model, task.inputs)
    run = traced.module(CheckpointSolverChen(traced.graph).solve())
    whole, _ = peak_and_difference(task, plain, reference)
    part, off = peak_and_difference(task, partial(task.step, run), reference)
    worker.record("answer", whole=whole, part=part, difference=off)


def upstream() -> None:
    """Upstream's own way: trace, estimate, solve by `solve()`, run; what it logs on the way, and the processes."""
    import subprocess

    from colossalai.auto_parallel.checkpoint import CheckpointSolverRotor
    from colossalai.fx import metainfo_trace, symbolic_trace

    started = []
    original = subprocess.Popen
    subprocess.Popen = lambda *args, **kwargs: started.append(args[0]) or original(*args, **kwargs)
    model, inputs = network("resnet18"), inputs_of("resnet18", 8)
    module = symbolic_trace(model, meta_args={"x": inputs["x"].to("meta")})
    metainfo_trace(module, inputs["x"].to("meta"))
    solver = CheckpointSolverRotor(module.graph, free_memory=4 * 2**20, memory_slots=50, optim_multiplier=-1)
    module.graph = solver.solve()
    module(inputs["x"]).sum().backward()
    worker.record("answer", processes=len(started), checkpoints=module.code.count("def checkpoint"))


if __name__ == "__main__":
    repairs.apply(noise, auto_trace, auto_checkpoint)
    globals()[sys.argv[1]]()
