"""The configuration of a run: a flat file of names, replaced by KEY=value, refused in one sentence when it cannot work.

Standard library alone, so that a mistake is answered before the heavy modules are imported.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from handson import worker
from handson.config_file import ConfigFile
from handson.worker import refuse

OPTIMIZERS = ("sgd", "lars", "lamb", "adamw")
TRAINING_IMAGES = 1024


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The names of `config.py`, in lower case."""

    optimizer: str
    plugin: str
    network: str
    width: int
    layers: int
    batch_size: int
    epochs: int
    warmup: float
    learning_rate: float | None
    learning_rates: dict
    momentum: float
    weight_decay: float
    decoupled_weight_decay: float
    trust_coefficient: float
    seed: int
    check_steps: int
    batches: list
    points: int
    lowest: dict
    seeds: int
    target: float
    image_size: int
    blocks: list
    stem_width: int
    classes: int
    precision: str
    images_per_rank: int
    warmup_steps: int
    timed_steps: int
    sweep: list

    def rate(self) -> float:
        """The peak learning rate of this run."""
        return float(self.learning_rate or self.learning_rates[self.optimizer])

    def rates(self, optimizer: str) -> list[float]:
        """The learning rates that `compare.py` tries for an optimizer, each twice the one before."""
        return [self.lowest[optimizer] * 2**k for k in range(self.points)]


FILE = ConfigFile(
    Settings,
    Path(__file__).resolve().parent,
    example="BATCH_SIZE=256",
    least={"SEED": 0, "WARMUP_STEPS": 0, "LAYERS": 2},
    choices={
        "OPTIMIZER": OPTIMIZERS,
        "PLUGIN": ("ddp", "zero"),
        "NETWORK": ("plain", "batchnorm"),
        "PRECISION": ("fp32", "bf16"),
    },
)


def parser(title: str) -> argparse.ArgumentParser:
    """The command line that both scripts share: a configuration and KEY=value; a mistake is answered in a sentence."""
    found = argparse.ArgumentParser(description=title)
    found.add_argument("--config", required=True, help="a file of settings, such as config.py")
    found.add_argument("overrides", nargs="*", metavar="KEY=value", help="replaces a line of the configuration")
    found.error = lambda message: refuse(f"{message}; {' '.join(found.format_usage().split())}")
    return found


def read(config: str, overrides: list[str], optimizer: str | None = None) -> Settings:
    """The file's names, its GPU preset where that applies, then the command line's; refuses what cannot be.

    Raises:
        SystemExit: with code 2, after one sentence that says what is wrong and what to do.
    """
    given = FILE.assignments(overrides) | ({"OPTIMIZER": optimizer} if optimizer else {})
    names, gpu = FILE.read(config, given)
    settings = FILE.make(names | (gpu if worker.preset() == "gpu" else {}))
    _settle(settings)
    return settings


def check_batch(batch: int, name: str = "BATCH_SIZE", world_size: int = 1) -> None:
    """Refuse a batch that the ranks cannot share evenly or that does not divide the training images."""
    if TRAINING_IMAGES % batch:
        refuse(f"{name}={batch} does not divide the {TRAINING_IMAGES} training images; use a power of 2 up to them")
    if batch % world_size:
        refuse(f"{name}={batch} cannot be shared by {world_size} ranks; start 1, 2, 4 or 8")


def _settle(settings: Settings) -> None:
    """Refuse values that do not go together."""
    for name in ("learning_rates", "lowest"):
        rates = getattr(settings, name)
        if missing := [key for key in OPTIMIZERS if not (isinstance(rates.get(key), int | float) and rates[key] > 0)]:
            refuse(f"{name.upper()} gives no positive learning rate for {', '.join(missing)}; give one for each")
    for name in ("batches", "blocks", "sweep"):
        values = getattr(settings, name)
        if not values or any(not isinstance(value, int) or value < 1 for value in values):
            refuse(f"{name.upper()}={values} must be a list of whole numbers from 1 on")
    for batch in settings.batches:
        check_batch(batch, "a batch of BATCHES")
        if batch == 1:
            refuse("BATCHES names 1, and batch norm takes its statistics over two images or more; leave it out")
    if len(settings.sweep) != 2 or settings.sweep[0] > settings.sweep[1]:
        refuse(f"SWEEP={settings.sweep} must be two numbers of images, the first not above the second")
    if not 0 <= settings.warmup < 1:
        refuse(f"WARMUP={settings.warmup} must be a share of the steps, from 0 to below 1")
    if not 0 < settings.target <= 1:
        refuse(f"TARGET={settings.target} must be an accuracy above 0 and up to 1")
    if not 0 < settings.trust_coefficient <= 1:
        refuse(f"TRUST_COEFFICIENT={settings.trust_coefficient} must be above 0 and up to 1, as Lars demands")
