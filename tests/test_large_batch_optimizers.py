"""Colossal-AI's LARS and LAMB, step by step beside timm's, a maintained implementation; and every fault of theirs."""

import importlib
import importlib.util
import inspect
import sys
from types import MethodType, ModuleType

import pytest
import torch
from handson import launch
from handson.repairs import optimizers as repairs
from handson.sources import SCRIPTS

STEPS = 12


@pytest.fixture(scope="module")
def timm():
    """timm's two optimizers without timm's package, whose import needs torchvision, which a CPU build cannot have."""
    folder = importlib.util.find_spec("timm").submodule_search_locations[0]
    for name, path in (("timm", folder), ("timm.optim", f"{folder}/optim")):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [path]
    found = {name: getattr(importlib.import_module(f"timm.optim.{name.lower()}"), name) for name in ("Lars", "Lamb")}
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        del sys.modules[name]  # transformers asks later whether there is a timm
    return found


@pytest.fixture
def repaired(monkeypatch):
    """Upstream's class with its repairs in force, for one test."""
    from colossalai.nn.optimizer import Lars

    monkeypatch.setattr(repairs, "_cured", set())
    monkeypatch.setattr(Lars, "step", inspect.unwrap(Lars.step))
    for repair in repairs.REPAIRS[:2]:
        assert repair.needed()
        repair.patch()
    return Lars


def network() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64) / 4)
        for shape in ((16, 8), (16,), (4, 16), (3, 2, 5, 5))
    ]


def train(make, scale: float = 1.0) -> list[torch.Tensor]:
    """The weights after some steps on gradients that depend on the weights, at a learning rate that changes."""
    parameters = network()
    optimizer = make(parameters)
    generator = torch.Generator().manual_seed(4)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 + step % 3)
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = scale * (parameter.detach() + noise) / (step + 1)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def apart(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def upstream_lars(parameters, **settings):
    from colossalai.nn.optimizer import Lars

    optimizer = Lars(parameters, **settings)
    optimizer.step = MethodType(repairs.upstream_lars_step(), optimizer)
    return optimizer


def reference_lars(timm, momentum: float):
    settings = dict(lr=0.05, momentum=momentum, weight_decay=1e-2, trust_coeff=0.1, eps=0.0, always_adapt=True)
    return lambda parameters: timm["Lars"](parameters, **settings)


OURS = dict(lr=0.05, weight_decay=1e-2, eeta=0.1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_takes_the_steps_of_the_reference(timm, repaired, momentum):
    found = train(lambda p: repaired(p, momentum=momentum, **OURS))
    assert apart(found, train(reference_lars(timm, momentum))) < 1e-13
    assert apart(found, [p.detach() for p in network()]) > 1e-2  # it moved


def test_upstreams_lars_is_the_reference_only_without_momentum(timm):
    assert apart(train(lambda p: upstream_lars(p, **OURS)), train(reference_lars(timm, 0.0))) < 1e-13
    assert apart(train(lambda p: upstream_lars(p, momentum=0.9, **OURS)), train(reference_lars(timm, 0.9))) > 1e-2


def test_lars_does_not_care_how_the_loss_is_scaled_and_upstreams_does(repaired):
    settings = dict(lr=0.05, eeta=0.1, momentum=0.9)
    assert apart(train(lambda p: repaired(p, **settings), 1000), train(lambda p: repaired(p, **settings))) < 1e-13
    assert (
        apart(train(lambda p: upstream_lars(p, **settings), 1000), train(lambda p: upstream_lars(p, **settings))) > 1e-2
    )


@pytest.mark.parametrize("left_out", ["larsmomentum", "larsclamp"])
def test_each_repair_of_lars_cures_its_own_fault_alone(timm, repaired, monkeypatch, left_out):
    monkeypatch.setattr(repairs, "_cured", {"larsmomentum", "larsclamp"} - {left_out})
    momentum, scale = (0.9, 1.0) if left_out == "larsmomentum" else (0.0, 1000.0)
    found = train(lambda p: repaired(p, momentum=momentum, **OURS), scale)
    assert apart(found, train(reference_lars(timm, momentum), scale)) > 1e-3
    assert apart(found, train(lambda p: upstream_lars(p, momentum=momentum, **OURS), scale)) < 1e-13


def test_lars_keeps_what_upstream_says_of_closures_groups_and_zeros(repaired):
    zeros, excluded = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.ones(3))
    groups = [{"params": [zeros]}, {"params": [excluded], "lars": False}]
    optimizer = repaired(groups, lr=0.5, eeta=0.1, weight_decay=0.1)

    def closure():
        (zeros.sum() + 2 * excluded.sum()).backward()
        return 7.0

    assert optimizer.step(closure) == 7.0
    assert zeros.tolist() == [-0.5] * 3  # no trust ratio while its norm is 0
    assert excluded.tolist() == [0.0] * 3  # the plain step, without decay


def reference_lamb(timm):
    return lambda p: timm["Lamb"](
        p, lr=0.05, weight_decay=1e-2, bias_correction=False, max_grad_norm=None, always_adapt=True
    )


def test_lamb_takes_the_steps_of_the_reference(timm):
    from colossalai.nn.optimizer import Lamb

    found = train(lambda p: Lamb(p, lr=0.05, weight_decay=1e-2))
    assert apart(found, train(reference_lamb(timm))) < 1e-13


def test_lambs_bias_correction_scales_the_rate_and_is_not_the_references(timm):
    from colossalai.nn.optimizer import Lamb

    found = train(lambda p: Lamb(p, lr=0.05, bias_correction=True))
    settings = dict(lr=0.05, weight_decay=0.0, bias_correction=True, max_grad_norm=None, always_adapt=True)
    assert apart(found, train(lambda p: timm["Lamb"](p, **settings))) > 1e-2


def test_distributed_lamb_on_one_rank_takes_the_steps_of_the_reference(timm):
    from colossalai.nn.optimizer import DistributedLamb

    def make(parameters):
        optimizer = DistributedLamb(parameters, lr=0.05, weight_decay=1e-2, bias_correction=False)
        optimizer.setup_distributed()
        return optimizer

    assert apart(train(make), train(reference_lamb(timm))) < 1e-13


@pytest.mark.ranks
def test_distributed_lamb_on_parts_takes_the_steps_of_lamb_on_the_whole(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")
    run = launch("tests/scripts/large_batch_parts.py", ranks=2, preset="laptop", quiet=True)
    for row in run.rows("parts"):
        assert row["difference"] < 1e-13 < 1e-2 < row["moved"]
    assert len(run.rows("parts")) == 2 * 2  # with and without bias correction, on both ranks


@pytest.mark.ranks
@pytest.mark.parametrize("optimizer", ["lars", "lamb"])
def test_tensor_parallel_lamb_is_right_and_lars_is_wrong_when_forced(optimizer, monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")
    run = launch(
        f"tests/scripts/large_batch_tensor_parallel.py {optimizer}", ranks=2, preset="laptop", quiet=True,
        without=("larsparts",),
    )  # fmt: skip
    difference = run.value("answer", "difference")
    assert difference > 1e-4 if optimizer == "lars" else difference < 1e-6
    assert run.value("answer", "moved") > 1e-2


@pytest.mark.ranks
def test_tensor_parallel_lars_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")
    script = "tests/scripts/large_batch_tensor_parallel.py lars"
    error = launch(script, ranks=2, preset="laptop", quiet=True, expect_failure=True).error
    assert error.startswith("HybridParallelPlugin: Lars would take each tensor's norms from the part that a rank holds")
    assert error.endswith("use TorchDDPPlugin, or LAMB, whose distributed form adds the parts' squares up")


def test_optimizers_that_cannot_be_divided_are_known():
    from colossalai.nn.optimizer import FusedLAMB, Lamb

    fused = object.__new__(FusedLAMB)  # building it compiles a CUDA kernel
    assert repairs.cannot_be_divided(fused).startswith("FusedLAMB would take")
    assert "has no such option" in repairs.cannot_be_divided(Lamb(network(), adam=True))
    assert repairs.cannot_be_divided(Lamb(network())) == repairs.cannot_be_divided(None) == ""
    assert repairs.cannot_be_divided(torch.optim.SGD(network(), lr=0.1)) == ""


def test_every_repair_of_the_area_has_a_test():
    here = SCRIPTS.parent / "tests"
    text = "".join(path.read_text() for path in here.glob("test_large_batch*.py"))
    assert all(f'"{repair.name}"' in text for repair in repairs.REPAIRS)
