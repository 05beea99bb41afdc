"""One linear layer Y = X W under 1D, 2D, 2.5D and 3D tensor parallelism: bytes counted against the formulas.

    torchrun --nproc_per_node 4 linear.py MODE=1d
    torchrun --nproc_per_node 4 linear.py MODE=2d
    torchrun --nproc_per_node 4 linear.py MODE=2.5d DEPTH=1
    torchrun --nproc_per_node 8 linear.py MODE=2.5d DEPTH=2
    torchrun --nproc_per_node 8 linear.py MODE=3d

TOKENS=, IN= and OUT= change the shapes: X [TOKENS, IN], W [IN, OUT], Y [TOKENS, OUT]. In 1D a second layer
[OUT, IN] follows, since the first leaves Y cut by columns and only the pair hands on a whole activation.

Every rank draws the same X, W and dY, takes its blocks of them, runs colossalai.legacy's layer forward and
backward once, and compares its blocks of Y, dX and dW with the product of the whole matrices.
`linear_theory.py` derives what must be communicated. Rank 0 records the rows `linear` (one for each
collective and group), `linear_total` and `linear_parity`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from handson import repairs, worker
from handson.repairs import legacy_cpu, legacy_launch, noise
from linear_theory import ELEMENT_BYTES, Setting, compare_counts, published

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup

SIZE = {"laptop": 256, "gpu": 4096}


def main() -> None:
    """Read the setting, join the mesh, count and check one layer, and in 1D the pair."""
    # Ask the driver, not the runtime, whether there are GPUs: once asked, the runtime no longer lets us hide them.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    setting = read_setting(sys.argv[1:])
    join_mesh(setting)
    worker.log(setting.title())
    for layers in ("linear", "mlp") if setting.mode == "1d" else ("linear",):
        run(setting, layers)

    import torch.distributed as dist

    dist.destroy_process_group()


def read_setting(words: list[str]) -> Setting:
    """The setting of the command line, refused before anything heavy is loaded if it cannot work."""
    size = str(SIZE[worker.preset()])
    values = {"MODE": "1d", "DEPTH": "1", "TOKENS": size, "IN": size, "OUT": size}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in values:
            worker.refuse(f"{word} is no setting of linear.py; write KEY=value with {', '.join(values)}")
        values[name] = value
    for name in ("DEPTH", "TOKENS", "IN", "OUT"):
        if not values[name].isdecimal():
            worker.refuse(f"{name}={values[name]} is no whole number")
    numbers = [int(values[name]) for name in ("DEPTH", "TOKENS", "IN", "OUT")]
    setting = Setting(values["MODE"].lower(), worker.place().world_size, *numbers)
    if sentence := setting.refusal():
        worker.refuse(sentence)
    return setting


def join_mesh(setting: Setting) -> None:
    """Join the process group and let Colossal-AI lay the mode's mesh over the ranks."""
    place, backend = worker.place(), worker.backend()
    if backend == "gloo":
        # Colossal-AI asks torch whether there is a GPU; a job on the CPU must not see one that it cannot
        # share.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    repairs.apply(noise, legacy_launch, legacy_cpu)

    import torch
    from colossalai import legacy

    torch.backends.cuda.matmul.allow_tf32 = False
    tensor = dict(size=setting.ranks, mode=setting.mode)
    if setting.mode == "2.5d":
        tensor["depth"] = setting.depth
    legacy.launch(
        config=dict(parallel=dict(tensor=tensor)),
        rank=place.rank,
        world_size=place.world_size,
        host=place.host,
        port=place.port,
        backend=backend,
        local_rank=place.local_rank,
        verbose=False,
    )


@dataclass(frozen=True)
class Cut:
    """The block of a matrix that this rank holds: number `row` of `rows` equal parts, and `col` of `cols`."""

    rows: int = 1
    row: int = 0
    cols: int = 1
    col: int = 0

    def of(self, whole: Tensor) -> Tensor:
        """This rank's block of the whole matrix, a copy."""
        return whole.detach().chunk(self.rows, 0)[self.row].chunk(self.cols, 1)[self.col].clone()


def layout(setting: Setting) -> tuple[dict[str, Cut], dict[str, ProcessGroup]]:
    """This rank's blocks of X, W and Y (in 1D also of a second layer's V and Z), and the groups by their
    axes."""
    from colossalai.legacy.context import ParallelMode
    from colossalai.legacy.core import global_context as gpc

    modes = {
        "1d": {"tensor": "1D"},
        "2d": {"row": "2D_ROW", "col": "2D_COL"},
        "2.5d": {"row": "2P5D_ROW", "col": "2P5D_COL", "dep": "2P5D_DEP"},
        "3d": {"input": "3D_INPUT", "weight": "3D_WEIGHT", "output": "3D_OUTPUT"},
    }[setting.mode]
    axes = {axis: ParallelMode[f"PARALLEL_{mode}"] for axis, mode in modes.items()}
    groups = {axis: gpc.get_group(mode) for axis, mode in axes.items()}
    at = {axis: gpc.get_local_rank(mode) for axis, mode in axes.items()}
    p, q = setting.ranks, setting.q
    if setting.mode == "1d":
        columns = Cut(cols=p, col=at["tensor"])
        rows = Cut(rows=p, row=at["tensor"])
        return {"X": Cut(), "W": columns, "Y": columns, "V": rows, "Z": Cut()}, groups
    if setting.mode == "3d":
        i, w, o = at["input"], at["weight"], at["output"]
        x, y = Cut(q * q, w * q + i, q, o), Cut(q * q, w * q + o, q, i)
        return {"X": x, "W": Cut(q * q, o * q + w, q, i), "Y": y}, groups
    # A rank's place within its row is its column, and the other way round.
    row, col = at["col"], at["row"]
    activation = Cut(q * setting.depth, at.get("dep", 0) * q + row, q, col)
    return {"X": activation, "W": Cut(q, row, q, col), "Y": activation}, groups


def build(setting: Setting, layers: str) -> dict[str, nn.Module]:
    """colossalai.legacy's layers by the names of their weights; without bias, since the formulas have
    none."""
    from colossalai.legacy.nn.layer import parallel_1d, parallel_2d, parallel_2p5d, parallel_3d

    kind = {
        "1d": parallel_1d.Linear1D_Col,
        "2d": parallel_2d.Linear2D,
        "2.5d": parallel_2p5d.Linear2p5D,
        "3d": parallel_3d.Linear3D,
    }[setting.mode]
    network = {"W": kind(setting.inputs, setting.outputs, bias=False)}
    if layers == "mlp":
        network["V"] = parallel_1d.Linear1D_Row(setting.outputs, setting.inputs, bias=False, parallel_input=True)
    return network


def run(setting: Setting, layers: str) -> None:
    """One forward and backward of the layer (or of 1D's pair): the bytes counted, the results compared."""
    import torch
    import torch.distributed as dist
    from handson.measure.communication import CommunicationCounter

    cuts, groups = layout(setting)
    network = build(setting, layers)
    device, generator = worker.device(), torch.Generator().manual_seed(1234)

    def draw(rows: int, cols: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(rows, cols, generator=generator) * scale).to(device)

    # The whole matrices on one device: what the parallel layers must reproduce.
    x = draw(setting.tokens, setting.inputs).requires_grad_()
    whole = {"W": draw(setting.inputs, setting.outputs, setting.inputs**-0.5).requires_grad_()}
    whole["V"] = draw(setting.outputs, setting.inputs, setting.outputs**-0.5).requires_grad_()
    result = x
    for name in network:
        result = result @ whole[name]
    last = "Z" if layers == "mlp" else "Y"
    gradient = draw(*result.shape)
    result.backward(gradient)

    # 1D keeps a weight as [out, in], as torch does; the other modes as [in, out].
    as_matrix = (lambda weight: weight.t()) if setting.mode == "1d" else (lambda weight: weight)
    with torch.no_grad():
        for name, layer in network.items():
            as_matrix(layer.weight).copy_(cuts[name].of(whole[name]))

    # The layers take [batch, sequence, features]; here a sequence is one token long.
    block = cuts["X"].of(x).unsqueeze(1).requires_grad_()
    gradient_block = cuts[last].of(gradient).unsqueeze(1)
    with CommunicationCounter({group: axis for axis, group in groups.items()}) as counter:
        output = block
        for layer in network.values():
            output = layer(output)
        output.backward(gradient_block)
        if setting.depth > 1:
            # Each depth has seen its share of the rows only; colossalai.legacy leaves their gradients apart.
            dist.all_reduce(network["W"].weight.grad, group=groups["dep"])
    report(setting, layers, counter.rows())

    compare(layers, last, output.squeeze(1), result, cuts[last])
    compare(layers, "dX", block.grad.squeeze(1), x.grad, cuts["X"])
    for name, layer in network.items():
        compare(layers, f"d{name}", as_matrix(layer.weight.grad), whole[name].grad, cuts[name])


def report(setting: Setting, layers: str, rows: list[dict]) -> None:
    """Each collective's bytes beside the formula's; then what the published formula covers, in its own unit."""
    import torch
    import torch.distributed as dist

    who = {"mode": setting.mode, "layers": layers, "ranks": setting.ranks}
    name = {"linear": "one layer", "mlp": "two layers"}[layers]
    worker.log(f"\n{name}, forward and backward: bytes that each rank sends")
    worker.log(f"{'collective':16}{'group':8}{'calls':>5}{'counted':>15}{'expected':>15}  ratio  formula")
    lines = compare_counts(setting, layers, rows)
    for line in lines:
        if worker.place().rank == 0:
            worker.record("linear", **who, **asdict(line))
        sent, due = line.wire_bytes_counted, line.wire_bytes_expected
        numbers = f"{line.calls:5}{sent:15,.0f}{due:15,.0f}  {line.ratio()}"
        worker.log(f"{line.collective:16}{line.group:8}{numbers}  {line.formula}")

    counted = sum(line.wire_bytes_counted for line in lines)
    covered = sum(line.wire_bytes_counted for line in lines if line.in_published_formula)
    due = sum(line.wire_bytes_expected for line in lines)
    paper = published(setting, layers)
    in_unit = covered / ELEMENT_BYTES / float(paper.unit_elements)
    extremes = torch.tensor([-counted, counted], dtype=torch.float64, device=worker.device())
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    if worker.place().rank == 0:
        worker.record(
            "linear_total",
            **who,
            **setting.mesh(),
            published_formula=paper.formula,
            published_value=float(paper.value),
            unit=paper.unit,
            unit_elements=float(paper.unit_elements),
            measured_in_unit=in_unit,
            expected_bytes=due,
            counted_bytes=counted,
            outside_published_bytes=counted - covered,
            whole_matrices=counted / ELEMENT_BYTES / float(setting.mean_elements()),
            same_on_every_rank=bool(-extremes[0] == extremes[1]),
        )
    worker.log(f"{'all':29}{counted:15,.0f}{due:15,.0f}  {counted / due:.3f}")
    worker.log(f"published: {paper.formula} = {float(paper.value):.3f} {paper.unit}; counted: {in_unit:.3f}")


def compare(layers: str, name: str, block: Tensor, whole: Tensor, cut: Cut) -> None:
    """The largest difference of any rank's block from the same block of the product on one device."""
    import torch.distributed as dist

    difference = (block.detach() - cut.of(whole)).abs().max()
    dist.all_reduce(difference, op=dist.ReduceOp.MAX)
    worst, largest = difference.item(), whole.abs().max().item()
    if worker.place().rank == 0:
        worker.record("linear_parity", layers=layers, tensor=name, max_difference=worst, max_value=largest)
    worker.log(f"{name:3} differs by at most {worst:.1e} from one device's, whose values go up to {largest:.3g}")


if __name__ == "__main__":
    main()
