"""What tests/test_sequence_parallel.py asks of live ranks about our online ring, without Colossal-AI."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tutorial_src" / "sequence_parallel"))

import torch
import torch.distributed as dist
from attention import build_attention
from handson import worker
from ring import ALONE, Ring
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BATCH, LENGTH, HIDDEN, HEADS = 2, 64, 8, 2


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operator makes or takes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, result)):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def run(layer: torch.nn.Module, hidden: torch.Tensor, keep: torch.Tensor | None, ring: Ring) -> tuple:
    """Output, gradient of the input, and the parameters' gradients added up over the ring."""
    hidden = ring.cut(hidden).clone().requires_grad_()
    output = layer(hidden, keep)
    output.pow(2).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    for gradient in gradients.values():
        dist.all_reduce(gradient) if ring.size > 1 else None
    return output.detach(), hidden.grad, gradients


def main() -> None:
    place = worker.place()
    address = f"tcp://{place.host}:{place.port}"
    dist.init_process_group("gloo", init_method=address, rank=place.rank, world_size=place.world_size)
    ring = Ring(index=place.rank, ranks=tuple(range(place.world_size)), group=dist.group.WORLD)
    torch.manual_seed(3)
    plain = build_attention("plain", HIDDEN, HEADS)
    online = build_attention("ring_online", HIDDEN, HEADS, ring)
    online.load_state_dict(plain.state_dict())
    hidden = 3 * torch.randn(BATCH, LENGTH, HIDDEN)
    # Of the second sequence 3 tokens are left: on all ranks but the first every key is masked.
    padded = torch.arange(LENGTH) < torch.tensor([[LENGTH - 5], [3]])
    for name, keep in (("whole", None), ("padded", padded)):
        plain.zero_grad()
        online.zero_grad()
        output, slope, gradients = run(plain, hidden, keep, ALONE)
        with Largest() as largest:
            mine, mine_slope, mine_gradients = run(online, hidden, keep, ring)
        worker.record(
            "answer",
            mask=name,
            output=(mine - ring.cut(output)).abs().max().item(),
            slope=(mine_slope - ring.cut(slope)).abs().max().item() / slope.abs().max().item(),
            gradients={
                key: (mine_gradients[key] - wanted).abs().max().item()
                / gradients["query_key_value.weight"].abs().max().item()
                for key, wanted in gradients.items()
            },
            largest=largest.elements,
            block=BATCH * HEADS * (LENGTH // ring.size) ** 2,
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
