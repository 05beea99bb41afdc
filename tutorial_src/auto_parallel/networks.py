"""The networks that the auto-parallel and auto-checkpoint lessons trace: ResNets, and a small GPT in GPT-2's shapes.

Both are plain PyTorch, without a hint of parallelism or checkpointing; that is the point of the lessons.

The ResNets have torchvision's module names, so that a traced node reads `layer1_0_conv1`, and torchvision's
parameters: 25,557,032 of them in ResNet-50 with 1000 classes. torchvision itself is left out of the environment on
purpose (requirements.txt says why).

The GPT has the parameter names and shapes of GPT-2 as Hugging Face writes it, with `nn.Linear` in place of its
transposed `Conv1D`. Hugging Face's own is not traceable: it unpacks a shape that a tracer cannot know.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

# name -> (kind of block, blocks in each of the four stages)
RESNETS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}


class Residual(nn.Module):
    """Two 3 x 3 convolutions, or 1 x 1, 3 x 3, 1 x 1 around a bottleneck a quarter as wide; then the input is added.

    [batch, channels_in, h, w] -> [batch, channels_out, h / stride, w / stride]
    """

    def __init__(self, kind: str, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        inner = channels_out // (4 if kind == "bottleneck" else 1)
        if kind == "bottleneck":
            layers = [(channels_in, inner, 1, 1), (inner, inner, 3, stride), (inner, channels_out, 1, 1)]
        else:
            layers = [(channels_in, inner, 3, stride), (inner, channels_out, 3, 1)]
        for number, (size_in, size_out, kernel, step) in enumerate(layers, 1):
            convolution = nn.Conv2d(size_in, size_out, kernel, step, padding=kernel // 2, bias=False)
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", nn.BatchNorm2d(size_out))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels_in != channels_out:
            shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels_out))
        self.layers = len(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x
        for number in range(1, self.layers + 1):
            out = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(out))
            if number < self.layers:
                out = self.relu(out)
        if self.downsample is not None:
            x = self.downsample(x)
        out += x
        return self.relu(out)


class ResNet(nn.Module):
    """A residual network for images (He et al. 2015, https://arxiv.org/abs/1512.03385), stride on the 3 x 3.

    [batch, 3, h, w] -> logits [batch, classes]; h and w at least 32.
    """

    def __init__(self, kind: str, depths: tuple[int, ...], classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for stage, depth in enumerate(depths):
            width = (64 << stage) * (4 if kind == "bottleneck" else 1)
            blocks = []
            for block in range(depth):
                blocks.append(Residual(kind, channels, width, stride=2 if stage and not block else 1))
                channels = width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet(name: str, classes: int = 1000) -> ResNet:
    """Build `resnet18`, `resnet50` or `resnet152`.

    Raises:
        KeyError: for another name.
    """
    return ResNet(*RESNETS[name], classes=classes)


@dataclass(frozen=True)
class GPTSizes:
    """The sizes of a GPT: `width` is the hidden size, `positions` the sequence length, `vocabulary` the tokens."""

    layers: int
    width: int
    heads: int
    positions: int = 1024
    vocabulary: int = 50257


# small and medium are GPT-2's own (124,439,808 and 354,823,168 parameters); tiny is for a laptop.
GPTS = {
    "tiny": GPTSizes(layers=8, width=128, heads=4, positions=128, vocabulary=1024),
    "small": GPTSizes(layers=12, width=768, heads=12),
    "medium": GPTSizes(layers=24, width=1024, heads=16),
}


class Attention(nn.Module):
    """Causal self-attention, written out, so that a tracer sees its products and the scores between them.

    [batch, length, width] and mask [length, length] -> [batch, length, width]
    """

    def __init__(self, sizes: GPTSizes) -> None:
        super().__init__()
        self.c_attn = nn.Linear(sizes.width, 3 * sizes.width)
        self.c_proj = nn.Linear(sizes.width, sizes.width)
        self.sizes = sizes

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # The sizes are the model's own, never the input's: a traced input has no numbers to read.
        length, width, heads = self.sizes.positions, self.sizes.width, self.sizes.heads
        q, k, v = self.c_attn(x).split(width, dim=2)
        q = q.view(-1, length, heads, width // heads).transpose(1, 2)
        k = k.view(-1, length, heads, width // heads).transpose(1, 2)
        v = v.view(-1, length, heads, width // heads).transpose(1, 2)
        scores = torch.matmul(q, k.transpose(2, 3)) / (width // heads) ** 0.5
        weights = F.softmax(scores + mask, dim=-1)
        mixed = torch.matmul(weights, v).transpose(1, 2).contiguous()
        return self.c_proj(mixed.view(-1, length, width))


class MLP(nn.Module):
    """[batch, length, width] -> the same shape, four times as wide in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.act = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.act(self.c_fc(x)))


class Block(nn.Module):
    """One transformer block. [batch, length, width] and mask [length, length] -> [batch, length, width]"""

    def __init__(self, sizes: GPTSizes) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(sizes.width)
        self.attn = Attention(sizes)
        self.ln_2 = nn.LayerNorm(sizes.width)
        self.mlp = MLP(sizes.width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Embeddings, blocks and the last norm. tokens [batch, positions] -> [batch, positions, width]"""

    def __init__(self, sizes: GPTSizes) -> None:
        super().__init__()
        self.wte = nn.Embedding(sizes.vocabulary, sizes.width)
        self.wpe = nn.Embedding(sizes.positions, sizes.width)
        self.h = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.ln_f = nn.LayerNorm(sizes.width)
        future = torch.full((sizes.positions, sizes.positions), float("-inf")).triu(1)
        self.register_buffer("mask", future, persistent=False)
        self.register_buffer("order", torch.arange(sizes.positions), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(self.order)
        for block in self.h:
            x = block(x, self.mask)
        return self.ln_f(x)


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019) without dropout; the output layer shares its weights with the token embedding.

    tokens [batch, positions] -> logits [batch, positions, vocabulary]; with labels [batch, positions], the token
    that follows each position, -> the mean cross entropy, a scalar.
    """

    def __init__(self, sizes: GPTSizes) -> None:
        super().__init__()
        self.transformer = Transformer(sizes)
        self.lm_head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        self.vocabulary = sizes.vocabulary
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # As GPT-2: what is added to the residual stream starts smaller, by the number of additions.
                scale = (2 * sizes.layers) ** -0.5 if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        logits = self.lm_head(self.transformer(tokens))
        if labels is None:
            return logits
        return F.cross_entropy(logits.view(-1, self.vocabulary), labels.view(-1))


def gpt(name: str) -> GPT:
    """Build the GPT of one of the sizes in `GPTS`.

    Raises:
        KeyError: for another name.
    """
    return GPT(GPTS[name])
