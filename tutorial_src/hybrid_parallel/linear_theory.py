"""What one linear layer Y = X W must communicate under 1D, 2D, 2.5D and 3D tensor parallelism: the arithmetic.

|X|, |W|, |Y| are elements of the whole matrices. A figure is what one rank sends in one forward and one
backward, by the ring algorithms of `handson.measure.communication`: over a group of n, an all-reduce of b
costs 2(n-1)/n b, an all-gather to b, a reduce-scatter of b, a broadcast or a reduction of b cost (n-1)/n b
each.

1D (Megatron-LM, arXiv:1909.08053), P ranks. W is cut into P blocks of columns, X is whole on every rank. The
forward sends nothing. In the backward each rank holds one term of the sum dX = dY W^T: an all-reduce,
2(P-1)/P |X|. Y is left cut by columns; a second layer, cut by rows, takes it as it is, all-reduces its
output Z in the forward, 2(P-1)/P |Z|, and sends nothing in the backward. So 2(P-1)/P of an activation for
each layer.

2D (Optimus, arXiv:2104.05343), q x q ranks. All matrices lie in q x q blocks and SUMMA takes q steps.
Forward, Y = X W: step t broadcasts block column t of X along the rows and block row t of W along the
columns. Backward, dX = dY W^T: q broadcasts of W along the columns, q reductions of dX along the rows; dW =
X^T dY: q broadcasts of X along the rows, q reductions of dW along the columns. A call moves one block,
(q-1)/q |X|/q^2 for each rank on average, and q calls (q-1)/q^2 |X|. X moves three times (as X, dX, X) and so
does W: 3(q-1)/q^2 (|X| + |W|). Y never moves.

2.5D (Tesseract, arXiv:2105.14500), q x q x d ranks: d such meshes, each with 1/d of the rows of X and all of
W, so 3(q-1)/q^2 (|X|/d + |W|). The d copies of W then have d different gradients; their all-reduce over the
depth adds 2(d-1)/d |W|/q^2. The published formula leaves it out, and colossalai.legacy leaves out the call
itself.

3D (arXiv:2105.14450), q x q x q ranks. Each matrix lies in q^3 pieces. Forward: all-gather X over the input
group and W over the weight group, multiply, reduce-scatter Y over the output group. Backward: all-gather dY,
reduce-scatter dX and dW. Each call moves (q-1)/q^3 of its matrix: 2(q-1)/q^3 (|X| + |W| + |Y|).

The published formulas and their unit. Colossal-AI's documentation gives the bandwidth for one layer, forward
and backward, by the ring algorithm, as 1D 2(P-1)/P, 2D 6(q-1)/q, 2.5D 3(q-1)(d+1)/(dq), 3D 6(q-1)/q^3, and
names no unit. The lines above give these numbers when X, W and Y have one size S, but not in one unit. 1D
and 3D count whole matrices, S. 2D and 2.5D count the slice of a matrix that one row of the mesh holds, S/q:
3(q-1)/q^2 (S + S) is 6(q-1)/q of S/q, and 3(q-1)/q^2 (S/d + S) is 3(q-1)(d+1)/(dq) of S/q. In the one unit S
the four are 2(P-1)/P, 6(q-1)/q^2, 3(q-1)(d+1)/(dq^2) and 6(q-1)/q^3: only these can be compared with each
other. For matrices of different sizes S stands for the mean of those that move, each as often as it moves.
(6(q-1)/q of S can be had too: as the time of broadcasts that are not pipelined, where a block waits on every
rank until it has arrived whole, q-1 hops.)
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import isqrt

ELEMENT_BYTES = 4  # fp32
MODES = ("1d", "2d", "2.5d", "3d")


@dataclass(frozen=True)
class Setting:
    """The mode, its mesh (q x q x depth ranks, q x q x q in 3D), X [tokens, inputs] and W [inputs, outputs]."""

    mode: str
    ranks: int
    depth: int
    tokens: int
    inputs: int
    outputs: int

    @property
    def q(self) -> int:
        """The side of the mesh."""
        return round(self.ranks ** (1 / 3)) if self.mode == "3d" else isqrt(self.ranks // self.depth)

    def elements(self, name: str) -> int:
        """Elements of a whole matrix; Z [tokens, inputs] is the output of a second layer that leads back."""
        if name == "W":
            return self.inputs * self.outputs
        return self.tokens * (self.outputs if name == "Y" else self.inputs)

    def mean_elements(self) -> Fraction:
        """S: the mean size of X, W and Y."""
        return Fraction(sum(self.elements(name) for name in "XWY"), 3)

    def mesh(self) -> dict[str, object]:
        """The mesh and the shapes, as rows record them."""
        side = None if self.mode == "1d" else self.q
        depth = self.depth if self.mode == "2.5d" else None
        x, w, y = (self.tokens, self.inputs), (self.inputs, self.outputs), (self.tokens, self.outputs)
        return {"q": side, "d": depth, "shapes": {"X": x, "W": w, "Y": y}}

    def title(self) -> str:
        """The setting in one line."""
        mesh = {"1d": "", "2.5d": f", q = {self.q}, d = {self.depth}"}.get(self.mode, f", q = {self.q}")
        shapes = f"X [{self.tokens}, {self.inputs}] times W [{self.inputs}, {self.outputs}], fp32"
        return f"{self.mode} on {self.ranks} ranks{mesh}: {shapes}"

    def refusal(self) -> str | None:
        """Why this setting cannot run, in one sentence, or None."""
        if self.mode not in MODES:
            return f"MODE={self.mode} is unknown; use {', '.join(MODES)}"
        if min(self.depth, self.tokens, self.inputs, self.outputs) < 1:
            return "DEPTH, TOKENS, IN and OUT must be 1 or more"
        p, q, d = self.ranks, self.q, self.depth
        if d != 1 and self.mode != "2.5d":
            return f"DEPTH={d} is for MODE=2.5d; MODE={self.mode} has no depth"
        if self.mode == "1d" and p < 2:
            return f"MODE=1d needs 2 ranks or more, this job has {p}"
        if self.mode == "2d" and (q < 2 or q * q != p):
            return f"MODE=2d needs q x q ranks (4, 9, 16, ...), this job has {p}"
        if self.mode == "2.5d" and (q < 2 or q * q * d != p):
            return f"MODE=2.5d with DEPTH={d} needs q x q x {d} ranks ({4 * d}, {9 * d}, ...), this job has {p}"
        if self.mode == "3d" and (q < 2 or q**3 != p):
            return f"MODE=3d needs q x q x q ranks (8, 27, ...), this job has {p}"
        parts = {"1d": (1, 1, p), "2d": (q, q, q), "2.5d": (q * d, q, q), "3d": (q * q, q * q, q)}[self.mode]
        sizes = {"TOKENS": self.tokens, "IN": self.inputs, "OUT": self.outputs}
        for (name, size), count in zip(sizes.items(), parts, strict=True):
            if size % count:
                return f"{name}={size} is not divisible by {count}, as MODE={self.mode} on {p} ranks needs"
        return None


@dataclass(frozen=True)
class Term:
    """What the algorithm asks of one collective over one group: `share` of each of the `matrices`."""

    collective: str
    group: str
    calls: int
    share: Fraction
    text: str
    matrices: str
    published: bool = True

    @property
    def formula(self) -> str:
        """The share and the matrices, to be read."""
        sizes = " + ".join(f"|{name}|" for name in self.matrices)
        return f"{self.text} ({sizes})" if len(self.matrices) > 1 else f"{self.text} {sizes}"

    def wire_bytes(self, setting: Setting) -> int | float:
        """Bytes that one rank sends."""
        sent = self.share * sum(setting.elements(name) for name in self.matrices) * ELEMENT_BYTES
        return int(sent) if sent.denominator == 1 else float(sent)


def expected(setting: Setting, layers: str = "linear") -> list[Term]:
    """What one forward and one backward must communicate. `layers`: "linear", or in 1D "mlp" for the pair."""
    p, q, d = setting.ranks, setting.q, setting.depth
    if setting.mode == "1d":
        matrices = "XZ" if layers == "mlp" else "X"
        return [Term("all_reduce", "tensor", len(matrices), Fraction(2 * (p - 1), p), "2(P-1)/P", matrices)]
    if setting.mode == "3d":
        groups = {"input": "X", "weight": "W", "output": "Y"}
        return [
            Term(collective, group, 1, Fraction(q - 1, q**3), "(q-1)/q³", matrix)
            for collective in ("all_gather", "reduce_scatter")
            for group, matrix in groups.items()
        ]
    part, below = Fraction(q - 1, q**2), "(dq²)" if d > 1 else "q²"
    terms = [
        Term("broadcast", "row", 2 * q, 2 * part / d, f"2(q-1)/{below}", "X"),
        Term("broadcast", "col", 2 * q, 2 * part, "2(q-1)/q²", "W"),
        Term("reduce", "row", q, part / d, f"(q-1)/{below}", "X"),
        Term("reduce", "col", q, part, "(q-1)/q²", "W"),
    ]
    if d > 1:
        terms.append(
            Term("all_reduce", "dep", 1, Fraction(2 * (d - 1), d * q**2), "2(d-1)/(dq²)", "W", published=False)
        )
    return terms


@dataclass(frozen=True)
class Published:
    """The documentation's formula, its value here, and the unit that makes it true: in words, in elements."""

    formula: str
    value: Fraction
    unit: str
    unit_elements: Fraction


def published(setting: Setting, layers: str = "linear") -> Published:
    """The formula of Colossal-AI's documentation for this mode."""
    p, q, d = setting.ranks, setting.q, setting.depth
    x, w, y = (setting.elements(name) for name in "XWY")
    if setting.mode == "1d":
        value, unit = Fraction(2 * (p - 1), p), "whole activations, |X|"
        if layers == "mlp":
            return Published("2 layers × 2(P-1)/P", 2 * value, unit, Fraction(x))
        return Published("2(P-1)/P", value, unit, Fraction(x))
    if setting.mode == "2d":
        return Published("6(q-1)/q", Fraction(6 * (q - 1), q), "row slices, S/q", Fraction(x + w, 2 * q))
    if setting.mode == "2.5d":
        value = Fraction(3 * (q - 1) * (d + 1), d * q)
        return Published("3(q-1)(d+1)/(dq)", value, "row slices, S/q", Fraction(x + d * w, (d + 1) * q))
    value = Fraction(6 * (q - 1), q**3)
    return Published("6(q-1)/q³", value, "whole matrices, S", Fraction(x + w + y, 3))


@dataclass(frozen=True)
class Line:
    """One collective over one group: what was counted beside what the theory asks."""

    collective: str
    group: str
    calls: int
    calls_expected: int
    wire_bytes_counted: float
    wire_bytes_expected: float
    formula: str
    in_published_formula: bool

    def ratio(self) -> str:
        """Counted over expected."""
        return f"{self.wire_bytes_counted / self.wire_bytes_expected:.3f}" if self.wire_bytes_expected else " -"


def compare_counts(setting: Setting, layers: str, rows: list[dict]) -> list[Line]:
    """A counter's rows beside the terms of the theory; what only one of the two has is shown too."""
    terms = {(term.collective, term.group): term for term in expected(setting, layers)}
    counted = {(row["collective"], row["group"]): row for row in rows}
    lines = []
    for key in sorted(terms.keys() | counted.keys()):
        term, row = terms.get(key), counted.get(key, {"calls": 0, "wire_bytes": 0})
        due = term.wire_bytes(setting) if term else 0
        lines.append(
            Line(
                collective=key[0],
                group=key[1],
                calls=row["calls"],
                calls_expected=term.calls if term else 0,
                wire_bytes_counted=row["wire_bytes"],
                wire_bytes_expected=due,
                formula=term.formula if term else "not in the theory",
                in_published_formula=term.published if term else True,
            )
        )
    return lines
