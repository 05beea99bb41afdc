"""Compare SGD, LARS, LAMB and AdamW on real data, from a small batch to the full one, each at its best learning rate.

    colossalai run --nproc_per_node 2 compare.py --config config.py
    torchrun --nproc_per_node 2 compare.py --config config.py EPOCHS=40
    python compare.py --config config.py BATCHES=[64,1024]

Every method, on a network without normalisation and on one with batch norm, at every batch, gets the same number of
epochs, of learning rates and of seeds. The learning rate with the best mean validation accuracy is kept (a tie goes to
the lower validation loss), and the test accuracy of its seeds is what counts. The search trains replicas.py's stacked
copies; the kept training is then repeated by the optimizers themselves, one model at a time, for its losses, its time
and what it does to each layer. The ranks share the work, a method on a network each.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import settings as config
from handson import repairs, worker
from handson.repairs import booster_cpu, noise, optimizers
from settings import Settings

CHECKED_STEPS = 5  # of every kept training, replica beside optimizer


def main() -> None:
    """Share the work among the ranks, compare, and let rank 0 say what came out."""
    args = config.parser(__doc__.partition("\n")[0]).parse_intermixed_args()
    settings = config.read(args.config, args.overrides)
    repairs.apply(noise, booster_cpu, optimizers)

    import digits
    import torch
    import torch.distributed as dist

    place, device = worker.place(), worker.device()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(worker.backend())
    data = digits.load(device)
    sizes = {name: len(split.labels) for name, split in data._asdict().items()}
    worker.log(f"digits: {', '.join(f'{size} {name}' for name, size in sizes.items())} images")
    worker.log(
        f"{settings.epochs} epochs, {settings.points} learning rates x {settings.seeds} seeds, "
        f"on {place.world_size} rank{'s' * (place.world_size > 1)}"
    )
    if place.rank == 0:
        worker.record("data", **sizes, epochs=settings.epochs, points=settings.points, seeds=settings.seeds)
        worker.record("rule", target=settings.target, momentum=settings.momentum, trust=settings.trust_coefficient)
    mine = share(place.rank, place.world_size)
    found: list[dict] = []
    for done, (network, method) in enumerate(mine):
        found += compare(replace(settings, network=network), method, data)
        worker.progress(done + 1, len(mine))
    everyone: list[list[dict]] = [[] for _ in range(place.world_size)]
    dist.all_gather_object(everyone, found)
    if place.rank == 0:
        summarise([cell for cells in everyone for cell in cells])
    dist.destroy_process_group()


def share(rank: int, world_size: int) -> list[tuple[str, str]]:
    """The (network, method) pairs of a rank: the dearest first, each to the rank that has least to do."""
    from methods import METHODS

    cost = {"sgd": 1.1, "lars": 1.2, "lars-upstream": 1.2, "lamb": 1.2, "adamw": 1.0}
    pairs = {(n, m): cost[m] * (1.8 if n == "batchnorm" else 1) for n in ("plain", "batchnorm") for m in METHODS}
    shares: list[list[tuple[str, str]]] = [[] for _ in range(world_size)]
    for pair in sorted(pairs, key=pairs.__getitem__, reverse=True):
        min(shares, key=lambda own: sum(pairs[p] for p in own)).append(pair)
    return shares[rank]


def compare(settings: Settings, method: str, data) -> list[dict]:
    """One method on one network: search and repeat at every batch, from the smallest; one row a cell."""
    from methods import base

    cells, scaled = [], None
    for batch in sorted(settings.batches):
        # The linear scaling rule: the best learning rate of the smallest batch, times how much larger this one is.
        ruled = [scaled * batch] if method == "sgd" and scaled else []
        cell = search(settings, method, batch, settings.rates(base(method)) + ruled, data, tuned=settings.points)
        scaled = scaled or cell["learning_rates"][cell["best"]] / batch
        rate = cell["learning_rates"][cell["best"]]
        cell |= repeat(settings, method, batch, rate, data)
        cell["replica_difference"] = disagreement(settings, method, batch, rate, data)
        worker.record("cell", **cell)
        cells.append(cell)
    return cells


def search(settings: Settings, method: str, batch: int, rates: list[float], data, tuned: int) -> dict:
    """Train every learning rate with every seed at once; the first `tuned` of the rates stand for election."""
    import digits
    import networks
    import replicas
    import torch
    from schedule import factor

    seeds, device = range(settings.seeds), data.training.images.device
    models = [networks.mlp(settings, settings.seed + seed).to(device) for seed in seeds]
    shape = (len(rates), len(seeds))
    peaks = [rate for rate in rates for _ in seeds]
    copies = replicas.stack(models * len(rates), peaks, settings.network == "batchnorm")
    steps = settings.epochs * (config.TRAINING_IMAGES // batch)
    for epoch in range(settings.epochs):
        order = torch.stack([digits.order(settings.seed + seed, epoch) for seed in seeds]).to(device)
        for chosen in order.repeat(len(rates), 1).split(batch, 1):
            replicas.gradients(copies, data.training.images[chosen], data.training.labels[chosen])
            replicas.step(copies, method, factor(copies.steps, steps, settings.warmup), settings)
    validation, validation_loss = (x.view(shape) for x in replicas.evaluate(copies, data.training, data.validation))
    test = replicas.evaluate(copies, data.training, data.test)[0].view(shape)
    mean, loss = validation.mean(1).tolist(), validation_loss.mean(1).nan_to_num(math.inf).tolist()
    best = max(range(tuned), key=lambda index: (mean[index], -loss[index]))
    return dict(
        network=settings.network,
        method=method,
        batch=batch,
        steps=steps,
        learning_rates=rates,
        best=best,
        at_edge=best in (0, tuned - 1),
        validation=rounded(validation[:tuned]),
        test=rounded(test[:tuned]),
        ruled=rounded(test[tuned:]),  # SGD by the linear scaling rule, untuned
    )


def rounded(x) -> list:
    """A tensor of shares as nested lists, to the hundredth of a per cent."""
    return [[round(value, 4) for value in row] for row in x.tolist()]


@dataclass
class Repeated:
    """What a training by the optimizer itself leaves behind, step by step and epoch by epoch."""

    losses: list[float]
    step_ms: list[float]
    validation: list[float]
    ratios: list[list[float | None]]
    moved: list[list[float]]


def repeat(settings: Settings, method: str, batch: int, rate: float, data) -> dict:
    """The kept learning rate and the first seed once more, by the optimizer itself: losses, times and layers."""
    whole = batch == max(settings.batches)
    train(replace(settings, epochs=1), method, max(settings.batches), rate, data, watch=False)  # the first pays for all
    run = train(settings, method, batch, rate, data, watch=whole)
    per_epoch = config.TRAINING_IMAGES // batch
    reached = next((e for e, accuracy in enumerate(run.validation, 1) if accuracy >= settings.target), None)
    step_ms = sorted(run.step_ms)[len(run.step_ms) // 2]
    every = [sum(run.losses[e : e + per_epoch]) / per_epoch for e in range(0, len(run.losses), per_epoch)]
    seen = dict(trust_ratios=run.ratios, movements=run.moved) if whole else {}
    return seen | dict(
        losses=[round(loss, 5) if math.isfinite(loss) else None for loss in every],
        validation_by_epoch=[round(accuracy, 4) for accuracy in run.validation],
        step_ms=step_ms,
        epochs_to_target=reached,
        seconds_to_target=reached and reached * per_epoch * step_ms / 1e3,
    )


def disagreement(settings: Settings, method: str, batch: int, rate: float, data) -> float:
    """How far a replica's loss is from the optimizer's own in a few steps of one training, in double precision."""
    import digits
    import methods
    import networks
    import replicas
    import torch
    from schedule import factor
    from torch.nn.functional import cross_entropy

    device, steps = data.training.images.device, settings.epochs * (config.TRAINING_IMAGES // batch)
    images, labels = data.training.images.double(), data.training.labels
    models = [networks.mlp(settings, settings.seed + seed).to(device).double() for seed in (0, 1)]
    pair = replicas.stack(models, [rate, rate / 2], settings.network == "batchnorm")
    optimizer = methods.make(method, list(models[0].parameters()), rate, settings)
    order = torch.cat([digits.order(settings.seed, epoch) for epoch in range(CHECKED_STEPS)]).to(device)
    gaps = []
    for number, chosen in enumerate(order.split(batch)[:CHECKED_STEPS]):
        share = factor(number, steps, settings.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        optimizer.zero_grad()
        loss = cross_entropy(models[0](images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        losses = replicas.gradients(pair, images[chosen].expand(2, -1, -1), labels[chosen].expand(2, -1))
        replicas.step(pair, method, share, settings)
        gaps.append(abs(losses[0].item() - loss.item()))
    return max(gaps)


def train(settings: Settings, method: str, batch: int, rate: float, data, *, watch: bool) -> Repeated:
    """Train one model by the method's own optimizer; with `watch`, look at every layer in every step."""
    import digits
    import methods
    import networks
    from schedule import factor
    from torch.nn.functional import cross_entropy

    device = data.training.images.device
    model = networks.mlp(settings, settings.seed).to(device)
    optimizer = methods.make(method, list(model.parameters()), rate, settings)
    layers = methods.Layers(model, method, settings)
    run = Repeated([], [], [], [], [])
    steps = settings.epochs * (config.TRAINING_IMAGES // batch)
    for epoch in range(settings.epochs):
        for chosen in digits.order(settings.seed, epoch).to(device).split(batch):
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = rate * factor(len(run.losses), steps, settings.warmup)
            optimizer.zero_grad()
            loss = cross_entropy(model(data.training.images[chosen]), data.training.labels[chosen])
            loss.backward()
            if watch:
                layers.before()
            optimizer.step()
            run.losses.append(loss.item())  # reading it waits until the device is done
            run.step_ms.append((time.perf_counter() - began) * 1e3)
            if watch:
                ratios, moved = layers.after(optimizer)
                run.ratios.append(ratios)
                run.moved.append(moved)
        run.validation += networks.accuracy(model, data.training, data.validation)
    return run


def summarise(cells: list[dict]) -> None:
    """Log the test accuracy of every cell, and record how closely replicas and optimizers agree."""
    from methods import METHODS

    for network in ("plain", "batchnorm"):
        batches = sorted({cell["batch"] for cell in cells})
        worker.log(f"{network}: test accuracy in per cent at batch {', '.join(map(str, batches))}")
        for method in METHODS:
            own = [c for c in cells if (c["network"], c["method"]) == (network, method)]
            means = [100 * sum(c["test"][c["best"]]) / len(c["test"][c["best"]]) for c in own]
            worker.log(f"  {method:14}" + "".join(f"{mean:7.1f}" for mean in means))
    worst = max(cell["replica_difference"] for cell in cells)
    worker.log(f"replicas and optimizers: losses of {CHECKED_STEPS} steps within {worst:.1e}, {len(cells)} trainings")
    worker.record("replicas", steps=CHECKED_STEPS, trainings=len(cells), max_loss_difference=worst)


if __name__ == "__main__":
    main()
