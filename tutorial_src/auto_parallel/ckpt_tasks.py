"""What is trained, at which size: a network, one fixed batch, a loss; forward and backward, no optimizer.

An optimizer would add memory that no schedule changes. Gradients exist from the start and are added to, as in any
step but the first, so that they too count as fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import networks
import torch
from handson import worker
from torch.nn import functional as F

# (batch, side of the images) and (size of the GPT, batch), for each preset
IMAGES = {"gpu": (128, 224), "laptop": (16, 32)}
TOKENS = {"gpu": ("medium", 8), "laptop": ("tiny", 4)}
MODELS = ("resnet18", "resnet50", "resnet152", "gpt2")


@dataclass(frozen=True)
class Task:
    """A model on its device, a batch by argument name, and the words for both."""

    name: str
    model: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    batch: int
    shape: str

    @property
    def device(self) -> torch.device:
        """Where the step computes."""
        return next(iter(self.inputs.values())).device

    @property
    def blocks(self) -> list[tuple[str, torch.nn.Module]]:
        """The blocks that a person would wrap in `torch.utils.checkpoint`, in order."""
        kinds = networks.Residual | networks.Block
        return [(name, module) for name, module in self.model.named_modules() if isinstance(module, kinds)]

    @property
    def fixed(self) -> list[torch.Tensor]:
        """What exists before and after a step: parameters, their gradients, buffers."""
        parameters = list(self.model.parameters())
        return [*parameters, *(p.grad for p in parameters), *self.model.buffers()]

    def step(self, run: torch.nn.Module) -> None:
        """Forward and backward through `run`, which is the model or a checkpointed version of it."""
        result = run(*self.inputs.values())
        loss = result if self.labels is None else F.cross_entropy(result, self.labels)
        loss.backward()

    def largest_gradient(self) -> tuple[str, int]:
        """The parameter whose gradient is the largest temporary of its kind, and its bytes."""
        return max(((name, p.nbytes) for name, p in self.model.named_parameters()), key=lambda pair: pair[1])


def build(name: str) -> Task:
    """Build a task at this preset's size, on this rank's device; always the same weights and batch.

    On a GPU, products of fp32 matrices and convolutions use TF32.
    """
    device = worker.device()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(0)
    with device:
        model = networks.gpt(TOKENS[worker.preset()][0]) if name == "gpt2" else networks.resnet(name)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    default = TOKENS[worker.preset()][1] if name == "gpt2" else IMAGES[worker.preset()][0]
    return Task(name, model, *_batch(name, default, device))


def with_batch(task: Task, batch: int) -> Task:
    """The same model with a batch of another size."""
    return Task(task.name, task.model, *_batch(task.name, batch, task.device))


def _batch(
    name: str, batch: int, device: torch.device
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None, int, str]:
    """Inputs by argument name, labels where the model does not take them itself, size, and the words for it."""
    preset = worker.preset()
    drawn = torch.Generator(device).manual_seed(1)
    if name == "gpt2":
        size = TOKENS[preset][0]
        sizes = networks.GPTS[size]
        shape = (batch, sizes.positions + 1)
        tokens = torch.randint(sizes.vocabulary, shape, generator=drawn, device=device)
        inputs = {"tokens": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}
        return inputs, None, batch, f"{batch} x {sizes.positions} tokens, GPT-2 {size}"
    side = IMAGES[preset][1]
    images = torch.randn(batch, 3, side, side, generator=drawn, device=device)
    labels = torch.randint(1000, (batch,), generator=drawn, device=device)
    return {"x": images}, labels, batch, f"{batch} x 3 x {side} x {side}"
