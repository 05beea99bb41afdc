"""From a model to the chain that Rotor solves: trace it, estimate what its stages save, measure what they take.

Colossal-AI's tracer writes the model down as a graph; its linearisation groups the nodes into stages, each fed by the
one before alone. What a stage saves for backward (`xbar`) and what it hands on (`x`) are colossalai's estimates, made
on meta tensors without computing anything. Three things are measured here, by running every stage alone:

- its times. Upstream's profile leaves them at zero and its solver then counts nodes: a view is as dear as a
  convolution, backward as dear as forward;
- the part of its forward pass that is skipped when a recomputation ends with it: torch.utils.checkpoint stops as soon
  as backward has all it needs, before a transformer's last product, say. Upstream's solver does not know of it and
  cannot tell a cut after a dear product from one after a cheap sum;
- the most memory that it takes beside what it saves (`btmp`). Upstream's estimate leaves out the gradients of
  parameters before they are added up, and the workspace of kernels. The difference is this stage's margin.
"""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections.abc import Callable

import torch
from colossalai._analyzer.fx.tracer.tracer import ColoTracer
from colossalai.auto_parallel.checkpoint import CheckpointSolverRotor
from colossalai.auto_parallel.checkpoint.operation import Chain
from colossalai.fx import ColoGraphModule
from colossalai.fx.passes.meta_info_prop import MetaInfoProp
from colossalai.fx.profiler import MetaTensor, calculate_fwd_out
from handson.measure.memory import PeakMemory
from torch.fx import Graph, GraphModule, Node
from torch.utils.checkpoint import checkpoint

UNLIMITED = float(1 << 50)


class Linearised(CheckpointSolverRotor):
    """Upstream's solver, on stages whose output the next one really keeps.

    Upstream takes an output that the next stage does not need for its backward to be free. As a checkpoint it would
    have to be kept, so such a stage is joined with the next: the output layer with the loss, for example.
    """

    def _linearize_graph(self) -> list[list[Node]]:
        stages: list[list[Node]] = [[]]
        for stage in super()._linearize_graph():
            stages[-1] += stage
            if calculate_fwd_out(stage[-1]):
                stages.append([])
        return [stage for stage in stages if stage]


class Traced:
    """A model's graph, its stages and its chain: sizes in bytes, times in seconds (zero until `profile` ran)."""

    def __init__(self, model: torch.nn.Module, graph: Graph, input_bytes: int) -> None:
        solver = Linearised(graph, UNLIMITED, optim_multiplier=-1)
        self.model, self.graph, self.input_bytes = model, graph, input_bytes
        self.chain: Chain = solver._construct_chain(solver.graph, solver.node_list)
        self.chain.ftime = [0.0] * len(self.chain)
        self.chain.btime = [0.0] * (len(self.chain) + 1)
        self.chain.skipped = [0.0] * len(self.chain)
        self.stages = [[node.name for node in stage] for stage in solver.node_list]
        self.margins = [0] * len(self.stages)

    @property
    def saved_bytes(self) -> int:
        """What is saved for backward when nothing is recomputed, by colossalai's estimate.

        The network's input counts as free in it, as in `chain.x[0]`, which is 0.
        """
        return sum(self.chain.xbar)

    @property
    def plain_seconds(self) -> float:
        """The time of a step that recomputes nothing: every stage once forward and once backward."""
        return sum(self.chain.ftime) + sum(self.chain.btime)

    def label(self, index: int) -> str:
        """The stage's name: its first layer's, or its first node's where it has none."""
        layers = {node.name for node in self.graph.nodes if node.op == "call_module"}
        return next((name for name in self.stages[index] if name in layers), self.stages[index][0])

    def module(self, graph: Graph) -> ColoGraphModule:
        """The model as this graph runs it; its parameters are the model's own, not copies."""
        return ColoGraphModule(self.model, copy.deepcopy(graph))


def trace(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> Traced:
    """Write down the graph of `model(**inputs)`, with colossalai's estimate of every node's memory.

    Nothing is computed and nothing allocated on the device: a copy of the model without its numbers is traced.
    """
    shapes = {name: value.to("meta") for name, value in inputs.items()}
    hollow = copy.deepcopy(model).to("meta")
    module = ColoGraphModule(hollow, ColoTracer().trace(hollow, meta_args=shapes))
    MetaInfoProp(module).propagate(*(MetaTensor(value, fake_device="cpu") for value in shapes.values()))
    module.graph.owning_module = module
    return Traced(model, module.graph, sum(value.nbytes for value in inputs.values()))


def between(first: Traced, second: Traced, share: float) -> Traced:
    """The chain at another batch size: every size and time is taken to be affine in the batch.

    `share` is 0 at the first one's batch, 1 at the second's; beyond 1 it extrapolates. The graph is the first one's,
    which holds for any batch.
    """
    chain = copy.deepcopy(first.chain)
    for name in ("ftime", "btime", "skipped", "x", "xbar", "ftmp", "btmp"):
        pairs = zip(getattr(first.chain, name), getattr(second.chain, name), strict=True)
        setattr(chain, name, [max(0, one + (other - one) * share) for one, other in pairs])
    other = copy.copy(first)
    other.chain = chain
    other.input_bytes = int(first.input_bytes + (second.input_bytes - first.input_bytes) * share)
    return other


def profile(traced: Traced, inputs: dict[str, torch.Tensor], *, repeats: int) -> None:
    """Run every stage alone, forward and backward: put its times, its extra memory and its margin into `traced`.

    At no time does more than one stage keep its activations, so that this works where a whole step does not fit.
    Stages of the same operators and shapes, as a network's repeated blocks are, are measured once. `inputs` are the
    model's, by name; their device is the one that is measured. Every parameter has a gradient already.
    """
    nodes = {node.name: node for node in traced.graph.nodes}
    stages = [_cut(traced.model, [nodes[name] for name in names]) for names in traced.stages]
    last_use = {name: index for index, (_, given, _) in enumerate(stages) for name in given}
    fixed = [*traced.model.parameters(), *traced.model.buffers()]
    fixed += [parameter.grad for parameter in traced.model.parameters()]
    device = next(iter(inputs.values())).device
    values, chain, known = dict(inputs), traced.chain, {}
    for index, (stage, given, wanted) in enumerate(stages):
        arguments = [values[name] for name in given]
        kind = _kind(traced.model, [nodes[name] for name in traced.stages[index]])
        if kind not in known:
            # Times first: they warm the stage up, and workspaces that libraries keep are then no longer its own.
            times = _times(stage, arguments, repeats, device)
            with PeakMemory(alive=[*fixed, *values.values()], device=device) as memory:
                _backward(_forward(stage, arguments))
            known[kind] = *times, memory.peak_bytes - memory.start_bytes
        chain.ftime[index], chain.btime[index], chain.skipped[index], peak = known[kind]
        taken = peak - chain.xbar[index + 1] - chain.x[index + 1]
        traced.margins[index] = max(0, taken - chain.btmp[index])
        chain.btmp[index] = max(0, taken)
        for name, value in zip(wanted, _forward(stage, arguments), strict=True):
            values[name] = value.detach().requires_grad_(value.requires_grad)
        values = {name: value for name, value in values.items() if last_use.get(name, -1) > index}


def _kind(model: torch.nn.Module, stage: list[Node]) -> tuple[str, ...]:
    """What a stage computes: two stages of one kind take the same time and memory."""
    modules = [model.get_submodule(node.target) if node.op == "call_module" else node.target for node in stage]
    return tuple(f"{module} {node.meta['tensor_meta']}" for module, node in zip(modules, stage, strict=True))


def _times(stage: GraphModule, arguments: list[torch.Tensor], repeats: int, device: torch.device) -> list[float]:
    """Seconds forward, backward, and of the forward pass that are skipped when the stage ends a recomputation.

    The median on a GPU, the least on a CPU, where others can only lengthen them. On a GPU events are set between the
    passes and read at the end, so that the device is never left waiting.
    """
    again = functools.partial(checkpoint, stage, use_reentrant=False)
    marks = []
    for _ in range(repeats + 1):
        marks.append([_mark(device)])
        for run in (stage, again):
            results = _forward(run, arguments)
            marks[-1].append(_mark(device))
            _backward(results)
            marks[-1].append(_mark(device))
    del marks[0]  # the first run warms up
    if device.type == "cpu":
        taken = [min(run[i + 1] - run[i] for run in marks) for i in range(4)]
    else:
        torch.cuda.synchronize(device)
        taken = [statistics.median(run[i].elapsed_time(run[i + 1]) for run in marks) / 1e3 for i in range(4)]
    forward, backward, _, recomputed = taken
    return [forward, backward, min(forward, max(0.0, forward - (recomputed - backward)))]


def _cut(model: torch.nn.Module, stage: list[Node]) -> tuple[GraphModule, list[str], list[str]]:
    """A stage as a module of its own, which frees each value after its last use; names of what it takes and gives."""
    graph, copies = Graph(), {}
    for node in stage:
        for source in node.all_input_nodes:
            if source not in stage and source not in copies:
                copies[source] = graph.placeholder(source.name)
    given = [node.name for node in copies]
    for node in stage:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    wanted = [node for node in stage if any(user not in stage for user in node.users)]
    graph.output(tuple(copies[node] for node in wanted))
    return GraphModule(model, graph), given, [node.name for node in wanted]


def _forward(stage: Callable[..., tuple[torch.Tensor, ...]], arguments: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return stage(*(value.detach().requires_grad_(value.requires_grad) for value in arguments))


def _backward(results: tuple[torch.Tensor, ...]) -> None:
    wanted = [result for result in results if result.requires_grad]
    torch.autograd.backward(wanted, [torch.ones_like(result) for result in wanted])


def _mark(device: torch.device) -> float | torch.cuda.Event:
    """A point in time: on the CPU the seconds that this process has computed, which others do not lengthen."""
    if device.type == "cpu":
        return time.process_time()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event
