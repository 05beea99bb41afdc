"""A transformer cut by tensor parallelism over two ranks, trained by LARS or LAMB, beside the same in one process."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tutorial_src" / "step_by_step"))

import torch
from handson import repairs, worker
from handson.repairs import booster_cpu, noise, optimizers

repairs.apply(noise, booster_cpu, optimizers)
import colossalai  # noqa: E402 - after the repairs, as the tutorial's scripts do
from colossalai.booster import Booster  # noqa: E402
from colossalai.booster.plugin import HybridParallelPlugin  # noqa: E402
from colossalai.logging import get_dist_logger  # noqa: E402
from colossalai.nn.optimizer import Lamb, Lars  # noqa: E402
from vit import Images, build_model  # noqa: E402


def make(parameters):
    if sys.argv[1] == "lars":
        return Lars(parameters, lr=0.5, momentum=0.9, eeta=0.1, weight_decay=1e-4)
    return Lamb(parameters, lr=0.01, weight_decay=0.01)


colossalai.launch_from_torch(verbose=False)
get_dist_logger().set_level("WARNING")
images = Images()
batch = {name: torch.stack([images[i][name] for i in range(4)]) for name in images[0]}


def losses(model, optimizer, backward) -> list[float]:
    found = []
    for _ in range(4):
        loss = model(**batch).loss
        backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


alone = build_model()
expected = losses(alone, make(alone.parameters()), lambda loss: loss.backward())
booster = Booster(plugin=HybridParallelPlugin(tp_size=2, pp_size=1, precision="fp32"))
model = build_model()
model, optimizer, *_ = booster.boost(model, make(model.parameters()))
found = losses(model, optimizer, lambda loss: booster.backward(loss, optimizer))
gap = max(abs(a - b) for a, b in zip(found, expected, strict=True))
worker.record("answer", difference=gap, moved=abs(expected[-1] - expected[0]))
