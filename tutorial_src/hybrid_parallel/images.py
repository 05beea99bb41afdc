"""The images: synthetic ones of CIFAR-10's shape, or CIFAR-10 itself read from its archive, without torchvision.

Every division of the ranks sees the same global batches in the same order; a data-parallel rank takes its slice.
"""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import torch
from handson import worker
from settings import Settings
from sharding import Mesh
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]

CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_ADDRESS = f"https://www.cs.toronto.edu/~kriz/{CIFAR10_ARCHIVE}"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"  # of the archive, as its authors publish it
SYNTHETIC_BATCHES = 4


def synthetic(settings: Settings, mesh: Mesh) -> Iterator[Batch]:
    """A few batches, over and over: each class has a pattern of its own under noise, so there is something to learn."""
    s, generator = settings, torch.Generator().manual_seed(settings.seed)
    pattern = torch.randn(s.num_classes, 3, s.img_size, s.img_size, generator=generator)
    made = []
    for _ in range(SYNTHETIC_BATCHES):
        labels = torch.randint(s.num_classes, (s.batch_size,), generator=generator)
        noise = torch.randn(s.batch_size, *pattern.shape[1:], generator=generator)
        made.append(_mine(noise.add_(pattern[labels]), labels, mesh))
        yield made[-1]
    yield from cycle(made)


def cifar10(folder: str, settings: Settings, mesh: Mesh) -> Iterator[Batch]:
    """CIFAR-10's training images, shuffled anew in each epoch, scaled to IMG_SIZE."""
    if settings.num_classes != 10:
        worker.refuse(f"CIFAR-10 has 10 classes, NUM_CLASSES={settings.num_classes}; use NUM_CLASSES=10")
    images, labels = read_cifar10(_archive(Path(folder), mesh))
    generator = torch.Generator().manual_seed(settings.seed)

    def batches() -> Iterator[Batch]:
        while True:
            order = torch.randperm(len(images), generator=generator)
            for chosen in order.split(settings.batch_size)[: len(images) // settings.batch_size]:
                pixels = images[chosen].float().div_(127.5).sub_(1)
                yield _mine(_scaled(pixels, settings.img_size), labels[chosen], mesh)

    return batches()


def read_cifar10(archive: Path) -> Batch:
    """All 50,000 training images [n, 3, 32, 32] as bytes, and their labels, from the archive."""
    images, labels = [], []
    with tarfile.open(archive) as tar:
        for number in range(1, 6):
            # Unpickling runs what it reads: the archive's checksum was verified before.
            part = pickle.load(tar.extractfile(f"cifar-10-batches-py/data_batch_{number}"), encoding="bytes")
            images.append(torch.from_numpy(part[b"data"]).view(-1, 3, 32, 32))
            labels += part[b"labels"]
    return torch.cat(images), torch.tensor(labels)


def _archive(folder: Path, mesh: Mesh) -> Path:
    """The verified archive; rank 0 fetches it if need be, and every rank learns what came of that."""
    import torch.distributed as dist

    archive, outcome = folder / CIFAR10_ARCHIVE, [""]
    if mesh.is_first():
        outcome = [_fetch(archive)]
    dist.broadcast_object_list(outcome, src=0, device=worker.device())
    if outcome[0]:
        worker.refuse(outcome[0])
    return archive


def _fetch(archive: Path) -> str:
    """Make sure that the archive lies there whole; the sentence that says why it does not, else ""."""
    by_hand = (
        f"download {CIFAR10_ADDRESS} on a host that can, put it into {archive.parent}, or use -s for synthetic images"
    )
    if not archive.is_file():
        worker.log(f"fetching CIFAR-10 (170 MB) into {archive.parent}")
        try:
            with urllib.request.urlopen(CIFAR10_ADDRESS, timeout=30) as answer:
                content = answer.read()
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            return f"CIFAR-10 is not in {archive.parent} and cannot be fetched ({error}); {by_hand}"
        archive.parent.mkdir(parents=True, exist_ok=True)
        part = archive.with_suffix(".part")
        part.write_bytes(content)
        part.replace(archive)
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != CIFAR10_MD5:
        return f"{archive} is not CIFAR-10's archive (MD5 {digest}, not {CIFAR10_MD5}); delete it, then {by_hand}"
    return ""


def _scaled(pixels: Tensor, size: int) -> Tensor:
    if pixels.shape[-1] == size:
        return pixels
    return nn.functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False)


def _mine(images: Tensor, labels: Tensor, mesh: Mesh) -> Batch:
    """This data-parallel rank's slice of the global batch, on its device."""
    which, of = mesh.index["data"], mesh.size["data"]
    return tuple(whole.chunk(of)[which].to(worker.device()) for whole in (images, labels))
