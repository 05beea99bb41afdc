"""Asks auto-parallel one question at a time and records the answer, with or without a repair: see its test."""

import contextlib
import copy
import os
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tutorial_src" / "auto_parallel"))

from handson import worker


def search() -> None:
    """Plan a small convolutional network, and say how much work that was."""
    import networks
    import solver
    import torch
    from handson import repairs

    repairs.apply(*solver.AREAS)
    from colossalai.tensor.shape_consistency import ShapeConsistencyManager
    from colossalai.tensor.sharding_spec import _DimSpec

    calls = {"tables": 0, "paths": 0}
    counted(_DimSpec, "_build_difference_2d_dict", calls, "tables")
    counted(ShapeConsistencyManager, "get_all_one_step_transform_spec", calls, "paths")
    with torch.device("meta"):
        model = torch.nn.Sequential(networks.Residual("basic", 8, 8, 1), networks.Residual("basic", 8, 16, 2))
    inputs = {"input": torch.empty(8, 8, 16, 16, device="meta")}
    # So slow links that whatever is sent costs more than 1e13 multiply-accumulates.
    machine = solver.Machine(1e15, (1e5, 1e5), (1e-5, 1e-5))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        plan = solver.plan(model, inputs, (2, 2), machine, loader="distributed")
    said = [str(one.message) for one in said if "unexpected behaviors" in str(one.message)]
    summary = plan.summary
    worker.record("answer", **calls, said=said, ours=summary["objective_ms"], solvers=summary["solver_objective_ms"])


def counted(owner: type, name: str, calls: dict, key: str) -> None:
    original = vars(owner)[name]
    function = getattr(original, "__func__", original)

    def wrapped(*arguments, **options):
        calls[key] += 1
        return function(*arguments, **options)

    setattr(owner, name, classmethod(wrapped) if isinstance(original, classmethod) else wrapped)


def trace() -> None:
    """Fail to trace a model, and look at what that leaves behind."""
    import solver
    import torch
    import torch.utils.checkpoint
    from handson import repairs

    class Undecided(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) if [one for one in x] else x

    repairs.apply(*solver.AREAS)
    import colossalai.auto_parallel.tensor_shard.initialize  # noqa: F401 - patches nothing, but loads what does

    before = torch.arange, torch.utils.checkpoint.CheckpointFunction.apply
    machine = solver.Machine(1e12, (1e9, 1e9), (0.0, 0.0))
    try:
        solver.plan(Undecided(), {"x": torch.empty(8, 8, device="meta")}, (2, 2), machine)
    except solver.Untraceable as error:
        after = torch.arange, torch.utils.checkpoint.CheckpointFunction.apply
        same = [one == other for one, other in zip(before, after, strict=True)]
        worker.record("answer", same=same, sentence=str(error))


def parity() -> None:
    """Shard four small models as told and compare each with itself on one device: the worst relative errors."""
    import sharded
    import torch

    mesh = sharded.read_mesh("2x1", worker.place().world_size)
    device_mesh = sharded.join(mesh)

    class Conv1D(torch.nn.Module):
        """As Hugging Face's GPT-2 has it: the weight is [in, out]."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = torch.nn.Parameter(torch.randn(16, 16)), torch.nn.Parameter(torch.randn(16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.addmm(self.bias, x, self.weight)

    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(4, 8, 3, padding=1, bias=False)
    plain = copy.deepcopy(convolution)

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = torch.nn.Conv2d(4, 8, 3, padding=1, bias=False), torch.nn.AdaptiveAvgPool2d(1)
            self.fc = torch.nn.Linear(8, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.flatten(self.pool(self.conv(x)), 1))

    images, rows = (8, 4, 6, 6), (8, 16)
    models = {
        "addmm": (Conv1D(), rows, "x", {}),
        # With the channels last in memory the weight's gradient is not contiguous.
        "hook": (torch.nn.Sequential(convolution).to(memory_format=torch.channels_last), images, "input", {}),
        "sync_bn": (torch.nn.Sequential(plain, torch.nn.BatchNorm2d(8)), images, "input", {}),
        # Output channels, dimension 1, are split over axis 0.
        "gather_dim": (Pooled(), images, "x", {"conv": "RS0 = RR x RS0"}),
    }
    for name, (model, shape, argument, wanted) in models.items():
        worker.record("answer", model=name, **compare(model, shape, argument, wanted, mesh, device_mesh))


def compare(model, shape, argument, wanted, mesh, device_mesh) -> dict:
    import sharded
    import solver
    import torch
    import torch.distributed as dist

    model = model.double()
    reference, inputs = copy.deepcopy(model), {argument: torch.empty(*shape, dtype=torch.float64, device="meta")}
    machine = solver.Machine(1e12, (1e12, 1e12), (0.0, 0.0))
    search = solver.Search(model, inputs, mesh, machine, device_mesh=device_mesh)
    plan = search.forced("data")
    names = [{strategy.name: number for number, strategy in enumerate(vector)} for vector in search.strategies]
    solution = list(plan.solution)
    for number, vector in enumerate(search.strategies):
        if vector.node.name in wanted:
            solution[number] = names[number][wanted[vector.node.name]]
        elif wanted and number:
            solution[number] = follow(search.strategies, solution, number)
    plan = search.describe(solution, label="told")
    strategies = {row["name"]: row["strategy"] for row in plan.nodes}
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 1
    expected = reference(x)
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (expected * weight).sum().backward()
    try:
        built = sharded.shard(search, plan)
        output = built.model(x)
        (output * weight).sum().backward()
    except RuntimeError as error:
        return {"strategies": strategies, "error": " ".join(str(error).split())}
    whole = dict(reference.named_parameters())
    gradient = 0.0
    for name, block in built.parameters().items():
        full = whole[name].grad
        gradient = max(gradient, ((block.grad - built.block(name, full)).norm() / full.norm()).item())
    errors = torch.tensor([((output - expected).norm() / expected.norm()).item(), gradient])
    dist.all_reduce(errors, op=dist.ReduceOp.MAX)
    return {"strategies": strategies, "output": errors[0].item(), "gradient": errors[1].item(), "error": ""}


def follow(strategies, solution, number) -> int:
    """The strategy whose input is split as it arrives."""
    costs = {}
    for index, strategy in enumerate(strategies[number]):
        total = strategy.communication_cost.total
        for node, cost in strategy.resharding_costs.items():
            source = [vector.node for vector in strategies].index(node)
            total += 1e6 * cost[solution[source]].total
        costs[index] = total
    return min(costs, key=costs.get)


def upstream() -> None:
    """Colossal-AI's own entrance, autoparallelize: on a mesh of a given shape, its solution saved and loaded."""
    import torch
    import torch.distributed as dist
    from handson import repairs
    from solver import AREAS

    worker.place()
    dist.init_process_group("gloo")
    repairs.apply(*AREAS)
    from colossalai.auto_parallel.tensor_shard.initialize import autoparallelize

    links = {(0, 1): (1e-5, 1e-9), (1, 0): (1e-5, 1e-9)}
    file = Path(tempfile.gettempdir()) / f"solution-{os.environ['MASTER_PORT']}-{dist.get_rank()}"
    outputs = []
    with contextlib.ExitStack() as left:
        left.callback(file.unlink, missing_ok=True)
        for keep in ({"save_solver_solution": True}, {"load_solver_solution": True}):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(16, 32, bias=False), torch.nn.Linear(32, 16, bias=False))
            meta = {"input": torch.empty(8, 16, device="meta")}
            whole = model(torch.ones(8, 16))
            made = autoparallelize(
                model, meta, alpha_beta_dict=links, logical_mesh_shape=(1, 2), solver_solution_path=str(file), **keep
            )
            outputs.append((made(torch.ones(8, 16)) - whole).abs().max().item())
    worker.record("answer", differences=outputs)


def profiler() -> None:
    """Colossal-AI's profiler of links, and a mesh that is flattened twice."""
    import torch
    import torch.distributed as dist
    from handson import repairs
    from solver import AREAS

    worker.place()
    dist.init_process_group("gloo")
    repairs.apply(*AREAS)
    from colossalai.device.alpha_beta_profiler import AlphaBetaProfiler
    from colossalai.device.device_mesh import DeviceMesh

    mesh = DeviceMesh(torch.arange(2), (2, 1), init_process_group=True, device="cpu")
    groups = len(dist.distributed_c10d._world.pg_map)
    flat = [mesh.flatten(), mesh.flatten()]
    made = len(dist.distributed_c10d._world.pg_map) - groups
    pairs = AlphaBetaProfiler([0, 1], warmup=1, repeat=2).alpha_beta_dict
    worker.record("answer", links=list(pairs[0, 1]), same=flat[0] is flat[1], made=made)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
