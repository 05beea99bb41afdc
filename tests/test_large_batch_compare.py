"""The comparison is fair and its short cut exact: stacked replicas, one rule for learning rates, an untouched test."""

import json
import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from handson import launch
from handson.run import Run
from handson.sources import SCRIPTS

FOLDER = SCRIPTS / "large_batch_optimizer"
METHODS = ("sgd", "lars-upstream", "lars", "lamb", "adamw")


@pytest.fixture
def topic(monkeypatch):
    """The topic's modules."""
    monkeypatch.setenv("HANDSON_PRESET", "laptop")
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("settings", "digits", "networks", "replicas", "methods", "schedule")
    return {name: __import__(name) for name in names}


@pytest.fixture
def repaired(monkeypatch):
    import inspect

    from colossalai.nn.optimizer import Lars
    from handson.repairs import optimizers

    monkeypatch.setattr(optimizers, "_cured", set())
    monkeypatch.setattr(Lars, "step", inspect.unwrap(Lars.step))
    for repair in optimizers.REPAIRS[:2]:
        repair.patch()


@pytest.mark.parametrize("network", ["plain", "batchnorm"])
@pytest.mark.parametrize("method", METHODS)
def test_a_replica_takes_the_steps_of_the_optimizer_itself(topic, repaired, method, network):
    read, replicas, networks = topic["settings"].read, topic["replicas"], topic["networks"]
    settings = read("config.py", [f"NETWORK={network}", "WIDTH=12"])
    rates = [r * 8 for r in settings.rates(topic["methods"].base(method))[:3]]
    models = [networks.mlp(settings, seed).double() for seed in (1, 2, 3)]
    copies = replicas.stack(models, rates, network == "batchnorm")
    generator = torch.Generator().manual_seed(0)
    pairs = zip(models, rates, strict=True)
    optimizers = [topic["methods"].make(method, list(m.parameters()), rate, settings) for m, rate in pairs]
    for step in range(6):
        share = topic["schedule"].factor(step, 6, 0.5)
        images = torch.randn(3, 32, 64, generator=generator, dtype=torch.float64)
        labels = torch.randint(10, (3, 32), generator=generator)
        replicas.gradients(copies, images, labels)
        replicas.step(copies, method, share, settings)
        for index, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.param_groups[0]["lr"] = rates[index] * share
            optimizer.step()
    for index, model in enumerate(models):
        for stacked, own in zip(copies.parameters, model.parameters(), strict=True):
            assert (stacked[index] - own).abs().max() < 1e-11


def test_replicas_and_models_are_judged_alike(topic):
    settings = topic["settings"].read("config.py", ["NETWORK=batchnorm", "WIDTH=12"])
    data = topic["digits"].load(torch.device("cpu"))
    models = [topic["networks"].mlp(settings, seed) for seed in (1, 2)]
    copies = topic["replicas"].stack(models, [1.0, 1.0], True)
    found, _ = topic["replicas"].evaluate(copies, data.training, data.test)
    alone = [topic["networks"].accuracy(model, data.training, data.test)[0] for model in models]
    assert found.tolist() == pytest.approx(alone)


def test_the_splits_share_no_image_and_are_the_whole_of_the_digits(topic):
    data = topic["digits"].load(torch.device("cpu"))
    assert [len(split.labels) for split in data] == [1024, 273, 500]
    again = topic["digits"].load(torch.device("cpu"))
    assert all(torch.equal(a.images, b.images) for a, b in zip(data, again, strict=True))
    every = torch.cat([split.images for split in data])
    from sklearn.datasets import load_digits

    raw = torch.tensor(load_digits().data, dtype=torch.float32)
    assert every.std() == pytest.approx(1, abs=0.02)
    assert len(torch.unique(every, dim=0)) == len(torch.unique(raw, dim=0)) == 1797  # none twice, none lost


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing(topic):
    shares = [topic["schedule"].factor(step, 20, 0.1) for step in range(20)]
    assert shares[:3] == [0.5, 1.0, 1.0] and max(shares) == 1
    assert all(later < earlier for earlier, later in pairwise(shares[2:]))
    assert shares[-1] < 0.02 and topic["schedule"].factor(0, 20, 0.0) == 1


def test_the_network_for_speed_is_resnet_50_at_the_gpu_preset(topic, monkeypatch):
    monkeypatch.setenv("HANDSON_PRESET", "gpu")
    with torch.device("meta"):
        model = topic["networks"].resnet(topic["settings"].read("config.py", []))
    assert sum(p.numel() for p in model.parameters()) == 25_557_032


SMALL = "EPOCHS=3 POINTS=3 SEEDS=2 BATCHES=[64,512,1024]"


@cache
def small() -> Run:
    command = f"large_batch_optimizer/compare.py --config config.py {SMALL}"
    return launch(command, ranks=2, preset="laptop", quiet=True)


@pytest.mark.ranks
def test_every_method_gets_the_same_epochs_learning_rates_and_seeds(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")
    cells = small().rows("cell")
    names = {(c["network"], c["method"], c["batch"]) for c in cells}
    assert names == {(n, m, b) for n in ("plain", "batchnorm") for m in METHODS for b in (64, 512, 1024)}
    assert len(cells) == len(names) and {c["rank"] for c in cells} == {0, 1}
    for cell in cells:
        assert cell["steps"] == 3 * 1024 // cell["batch"]
        assert len(cell["test"]) == len(cell["validation"]) == 3 and {len(seeds) for seeds in cell["test"]} == {2}
        rates = cell["learning_rates"]
        assert [b / a for a, b in pairwise(rates[:3])] == [2, 2]


@pytest.mark.ranks
def test_validation_alone_chooses_and_the_linear_rule_is_not_chosen(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")
    for cell in small().rows("cell"):
        means = [sum(seeds) for seeds in cell["validation"]]
        assert means[cell["best"]] >= max(means[:3]) - 1e-3
        assert cell["at_edge"] == (cell["best"] in (0, 2))
        ruled = cell["method"] == "sgd" and cell["batch"] > 64
        assert len(cell["learning_rates"]) == 3 + ruled and len(cell["ruled"]) == ruled
        if ruled:
            (start,) = (
                c for c in small().rows("cell")
                if (c["network"], c["method"], c["batch"]) == (cell["network"], "sgd", 64)
            )  # fmt: skip
            kept = start["learning_rates"][start["best"]]
            assert cell["learning_rates"][3] == pytest.approx(kept * cell["batch"] / 64)


@pytest.mark.ranks
def test_the_kept_training_is_repeated_by_the_optimizer_itself(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")
    for cell in small().rows("cell"):
        assert cell["replica_difference"] < 1e-10
        assert len(cell["losses"]) == len(cell["validation_by_epoch"]) == 3
        reached = [e for e, x in enumerate(cell["validation_by_epoch"], 1) if x >= 0.9]
        assert cell["epochs_to_target"] == (reached[0] if reached else None)
        if reached:
            steps = reached[0] * 1024 // cell["batch"]
            assert cell["seconds_to_target"] == pytest.approx(steps * cell["step_ms"] / 1e3)
        assert ("movements" in cell) == (cell["batch"] == 1024)
    whole = [c for c in small().rows("cell") if c["batch"] == 1024]
    for cell in whole:
        known = cell["method"].startswith("la")
        assert all((ratio is not None) == known for step in cell["trust_ratios"] for ratio in step)
    lamb = next(c for c in whole if c["method"] == "lamb")
    peak = lamb["learning_rates"][lamb["best"]]
    assert max(max(step) for step in lamb["movements"]) == pytest.approx(peak, rel=1e-4)  # LAMB moves each layer by lr
    json.dumps(whole, allow_nan=False)


@pytest.mark.ranks
def test_differences_in_definition_are_measured(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")
    run = launch("large_batch_optimizer/definitions.py", preset="laptop", quiet=True)
    found = [row["found"] for row in run.rows("definition")]
    assert found[0] > 10 and float(run.rows("definition")[0]["here"].split()[-1]) <= 1
    assert found[1] < 0.1 and run.rows("definition")[1]["here"] == "larsclamp: 1"
    # The gradient is 1/1000 of the weight's size, to within the two random norms; the clip makes 0.05 of 1.
    assert found[2] == pytest.approx(0.05, rel=0.2) and found[3] == pytest.approx(1) and found[4] == 0
    assert found[5] == "ValueError: Invalid learning rate: 1"
    assert found[6] == pytest.approx(math.sqrt(1 - 0.999) / (1 - 0.9), rel=1e-3)
    assert found[7:] == [
        "False, True",
        "AttributeError: 'DistributedLamb' object has no attribute 'is_dist'",
        "DistributedLamb, adam gone",
    ]
