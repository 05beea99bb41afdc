"""The picture of a network under a solver's plan: each layer in the colours of what its strategy cuts.

A colour says what is cut: the batch, a weight's output channels, its input channels. A box in two colours is cut in
both; the text in it is the site's notation, `b01` the batch over mesh axes 0 and 1. A faded box leaves an axis of the
mesh unused: the devices along it do the same work. These tints are no rank's colour.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch, Rectangle

from handson.show import picture, style

Row = Mapping[str, Any]

# letter: (colour, what is cut)
CUTS = {
    "b": ("#9ad0b4", "b: batch"),
    "o": ("#eac487", "o: output channels"),
    "i": ("#c3b1e8", "i: input channels"),
}
INK = "#000001"  # on a tint, in both themes
FADED = 0.4
CONV, SMALL, NAMED, GAP, BOX, LEFT = 1.02, 0.29, 0.68, 0.045, 0.2, 0.5  # inches


def cut_of(node: Row) -> dict[str, str]:
    """What a node's strategy cuts: {"b": "01"} is the batch over axes 0 and 1; empty where every rank does all.

    `o` and `i` are the output and input channels of its weight; without a weight, `o` is any cut of the output but
    that of its first dimension. The weight is as PyTorch stores it, [out, in, ...].
    """
    axes = [_axes(spec) for spec in (node.get("output") or node["input"])["sharding"]]
    weight = node.get("weight")
    found = {"b": axes[0] if len(axes) > 1 else "", "o": "".join(axes[1:]), "i": ""}
    if node["op"] == "get_attr":
        found = {"b": "", "o": axes[0] if axes else "", "i": "".join(axes[1:])}
    elif weight and len(weight["sharding"]) > 1:
        found |= {"o": _axes(weight["sharding"][0]), "i": _axes(weight["sharding"][1])}
    return {letter: over for letter, over in found.items() if over}


def _axes(spec: str) -> str:
    return "" if spec == "R" else spec.removeprefix("S")


def written(cut: Mapping[str, str]) -> str:
    """A cut in the notation: "b0 o1"."""
    return " ".join(f"{letter}{over}" for letter, over in cut.items())


def network(nodes: Iterable[Row], edges: Iterable[Row] = (), *, title: str = "") -> picture.Picture:
    """Draw a network, each layer in the colours of what its strategy cuts, a mark where a tensor is resharded.

    A residual network (nodes called `layer1_0_conv1`) is drawn in stages and blocks with their shortcuts, any other
    one as a chain, in the order of its nodes.

    Args:
        nodes: the rows "node" of one plan, in the order of the graph.
        edges: its rows "edge".
        title: what is drawn, for the picture's title.

    Raises:
        ValueError: when there is no node.
    """
    nodes = [node for node in nodes if node["op"] != "get_attr"]
    if not nodes:
        raise ValueError("there is no node to draw")
    marked = {edge["target"] for edge in edges}
    rows = _residual_rows(nodes)
    residual = bool(rows)
    rows = rows or [(node["name"], "", [node], []) for node in nodes]
    heights = [_pitch(row, residual) for row in rows]
    top = 0.34 if title else 0.08
    height = top + sum(heights) + 0.08
    cuts = [cut_of(node) for node in nodes]
    mesh = {axis for cut in cuts for over in cut.values() for axis in over}
    legend, strategies = _legend(cuts, mesh, bool(marked)), _strategies(nodes)
    with style.context():
        drawn, axes = picture.new(height=height + 0.23 * (-(-len(legend) // 2) + len(strategies) + 1) + 0.1)
        ax = axes[0, 0]
        ax.set(xlim=(0, style.WIDTH), ylim=(height, 0), aspect="equal")
        ax.axis("off")
        ax.text(0, 0.12, title, fontsize=11.5, va="center_baseline")
        sketch = _Sketch(ax, marked, mesh)
        for row, tall in zip(rows, heights, strict=True):
            (sketch.block if residual else sketch.link)(row, top)
            top += tall
        drawn.legend(handles=legend, loc="outside upper left", ncols=2, handlelength=1.5, columnspacing=1.2)
        if strategies:
            text = [f"{cut}   {name}   ({count})" for cut, name, count in strategies]
            drawn.legend(
                handles=[Line2D([], [], linestyle="", label=line) for line in text], loc="outside lower left",
                handlelength=0, handletextpad=0, labelspacing=0.3, alignment="left",
                title="strategies of the layers with weights (how many)", title_fontsize=10,
            )  # fmt: skip
        said = "; ".join(f"{count} × {name}, cut {cut}" for cut, name, count in strategies)
        where = f" Resharded before {', '.join(sorted(marked))}." if marked else ""
        drawn_as = f"{len(nodes)} nodes" + (f" in {len(rows)} rows of blocks" if residual else " in a chain")
        return picture.finish(drawn, f"{title or 'A network'}, {drawn_as}. Layers with weights: {said}.{where}")


_Line = tuple[str, str, list[Row], list[Row]]  # its label, the heading above it, its nodes, those of its shortcut


def _residual_rows(nodes: Sequence[Row]) -> list[_Line]:
    """The stem, a row for each block, and the head of a residual network; nothing for another network."""
    blocks: dict[tuple[str, str], _Line] = {}
    stem: list[Row] = []
    head: list[Row] = []
    inside: tuple[str, str] | None = None
    for node in nodes:
        match = re.match(r"layer(\d+)_(\d+)_(.*)", node["name"])
        if match:
            inside = match[1], match[2]
            label, heading = f"{match[1]}.{match[2]}", f"layer{match[1]}" if match[2] == "0" else ""
            line = blocks.setdefault(inside, (label, heading, [], []))
            line[3 if match[3].startswith("downsample") else 2].append(node)
        elif inside and not head and node["op"] in ("add", "iadd", "relu"):
            blocks[inside][2].append(node)
        else:
            (head if inside else stem).append(node)
    return [("", "stem", stem, []), *blocks.values(), ("", "head", head, [])] if blocks else []


def _pitch(row: _Line, residual: bool) -> float:
    return (0.38 if row[3] else 0.35 if residual else 0.27) + (0.24 if row[1] else 0)


def _has_weight(node: Row) -> bool:
    return bool(node.get("weight")) and len(node["weight"]["shape"]) > 1


@dataclass(frozen=True)
class _Sketch:
    """Where boxes are drawn: the axes, the nodes whose input is resharded, the mesh axes that the plan uses."""

    ax: Axes
    marked: set[str]
    mesh: set[str]

    def link(self, row: _Line, top: float) -> None:
        """One node of a chain: its name, its box."""
        label, _, (node,), _ = row
        self.ax.text(0, top + BOX / 2, label, fontsize=9.5, va="center_baseline")
        self.box(node, 2.6, top + BOX / 2, 1.2)

    def block(self, row: _Line, top: float) -> None:
        """A heading, the layers in a row, and the shortcut below them."""
        label, heading, nodes, shortcut = row
        if heading:
            self.heading(heading, nodes, top + 0.11)
            top += 0.24
        middle, below = top + BOX / 2, top + BOX + (0.095 if shortcut else 0.075)
        self.ax.text(0.12, middle, label, fontsize=9.5, va="center_baseline", color=style.MUTED)
        line = {"color": style.MUTED, "linewidth": 1.1, "zorder": 0, "solid_capstyle": "butt"}
        x, start = LEFT, LEFT - 0.09
        for node in nodes:
            if label and node["op"] in ("add", "iadd"):
                self.plus(node, x, middle)
                self.ax.plot([start, start, x + 0.1, x + 0.1], [middle, below, below, middle + 0.085], **line)
                x += 0.2 + GAP
                continue
            wide = CONV if _has_weight(node) else SMALL if label else NAMED
            self.box(node, x, middle, wide, name=node["name"])
            x += wide + GAP
        self.ax.plot([start, x - GAP], [middle] * 2, **line)
        at = LEFT + CONV
        for part in shortcut:
            wide = CONV if _has_weight(part) else SMALL
            self.box(part, at, below, wide, tall=0.12)
            at += wide + GAP

    def heading(self, text: str, nodes: Sequence[Row], y: float) -> None:
        shape = (nodes[-1].get("output") or nodes[-1]["input"])["shape"]
        about = f"{shape[1]} channels of {shape[2]} × {shape[3]}" if len(shape) == 4 else ""
        if text == "stem":
            about = "in the blocks below: wide convolution, narrow batch norm and ReLU"
        self.ax.text(0, y, text, fontsize=10, va="center_baseline", fontweight="bold")
        self.ax.text(0.72, y, about, fontsize=9.5, va="center_baseline", color=style.MUTED)

    def box(self, node: Row, x: float, middle: float, wide: float, *, tall: float = BOX, name: str = "") -> None:
        """One layer: as many stripes of colour as dimensions are cut; in it its cut, or its name."""
        cut, top = cut_of(node), middle - tall / 2
        self.ax.add_patch(Rectangle((x, top), wide, tall, facecolor=style.BACKGROUND, linewidth=0))
        for number, letter in enumerate(cut):
            part = wide / len(cut)
            stripe = Rectangle((x + number * part, top), part, tall, facecolor=CUTS[letter][0], linewidth=0)
            stripe.set_alpha(self.alpha(cut))
            self.ax.add_patch(stripe)
        self.ax.add_patch(Rectangle((x, top), wide, tall, fill=False, edgecolor=style.MUTED, linewidth=0.7))
        text = written(cut) if cut and (_has_weight(node) or not name) else name
        if text and wide > 0.5 and tall == BOX:
            style_of = {"ha": "center", "va": "center_baseline", "fontsize": 9}
            self.ax.text(x + wide / 2, middle, text, color=self.ink(cut), **style_of)
        self.mark(node, x, middle)

    def plus(self, node: Row, x: float, middle: float) -> None:
        """The addition of a shortcut."""
        cut, centre = cut_of(node), (x + 0.1, middle)
        self.ax.add_patch(Circle(centre, 0.085, facecolor=style.BACKGROUND, linewidth=0))
        if cut:
            colour = CUTS[next(iter(cut))][0]
            self.ax.add_patch(Circle(centre, 0.085, facecolor=colour, alpha=self.alpha(cut), linewidth=0))
        self.ax.add_patch(Circle(centre, 0.085, fill=False, edgecolor=style.MUTED, linewidth=0.8))
        self.ax.plot([x + 0.055, x + 0.145], [middle] * 2, color=self.ink(cut), linewidth=1)
        self.ax.plot([x + 0.1] * 2, [middle - 0.045, middle + 0.045], color=self.ink(cut), linewidth=1)
        self.mark(node, x, middle)

    def mark(self, node: Row, x: float, middle: float) -> None:
        if node["name"] in self.marked:
            look = {"marker": "D", "markersize": 5.5, "color": style.FOREGROUND, "mec": style.BACKGROUND}
            self.ax.plot(x - GAP / 2, middle, zorder=9, **look)

    def alpha(self, cut: Mapping[str, str]) -> float:
        return FADED if _repeats(cut, self.mesh) else 1.0

    def ink(self, cut: Mapping[str, str]) -> str:
        return INK if cut and not _repeats(cut, self.mesh) else style.FOREGROUND


def _repeats(cut: Mapping[str, str], mesh: set[str]) -> bool:
    """Whether devices along some axis of the mesh do the same work."""
    return bool(mesh - set("".join(cut.values())))


def _legend(cuts: Sequence[Mapping[str, str]], mesh: set[str], marks: bool) -> list[Any]:
    """The colours that occur, and what they mean."""
    edge = {"edgecolor": style.MUTED, "linewidth": 0.7}
    keys: list[Any] = [
        Patch(facecolor=colour, label=f"cut {meaning}", **edge)
        for letter, (colour, meaning) in CUTS.items()
        if any(letter in cut for cut in cuts)
    ]
    if any(cut and _repeats(cut, mesh) for cut in cuts):
        # Faded like the boxes, but an edge that can be seen.
        keys.append(Patch(facecolor=(*_rgb(CUTS["b"][0]), FADED), label="faded: an axis repeats the work", **edge))
    if not all(cuts):
        keys.append(Patch(facecolor=style.BACKGROUND, label="whole on every rank", **edge))
    if marks:
        look = {"marker": "D", "markersize": 5.5, "color": style.FOREGROUND, "linestyle": ""}
        keys.append(Line2D([], [], label="resharded before", **look))
    return keys


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _strategies(nodes: Sequence[Row]) -> list[tuple[str, str, int]]:
    """(cut, the solver's name, how many) of the layers with weights, the most frequent first."""
    counted: dict[tuple[str, str], int] = {}
    for node in nodes:
        if _has_weight(node):
            key = written(cut_of(node)) or "whole", node["strategy"]
            counted[key] = counted.get(key, 0) + 1
    return [(*key, count) for key, count in sorted(counted.items(), key=lambda item: -item[1])]
