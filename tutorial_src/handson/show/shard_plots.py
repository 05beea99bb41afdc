"""Pictures of who holds which block, and of where each rank sits on the mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.patches import Rectangle

from handson.show import picture, sharding, style
from handson.show.conditions import RunLike, Runs

Row = Mapping[str, Any]


def shard_map(
    run: RunLike, parameter: str, *, inputs: Row | None = None, outputs: Row | None = None, title: str = ""
) -> picture.Picture:
    """Draw one parameter cut into blocks in its ranks' colours; beside it what it multiplies and what comes out.

    `inputs` and `outputs` look like "parameter" rows: {name, global_shape, shards: [{rank, block}]}. Unless they
    name their dimensions in `dims`, they are X[B, J] and Y[B, I] of PyTorch's Y = X Wᵀ, or, where only this fits the
    sizes, X[B, I] and Y[B, J] of Y = X W.
    """
    row, places = sharding.parameter(run, parameter), sharding.coordinates(run)
    opening = f"Who holds which block of {row['name']} on {_ranks(run.ranks)}."
    if inputs is None or outputs is None:
        return _panels([(title, row, places)], opening, 1)
    first, last = row.get("dims", "IJ")
    if inputs["global_shape"][-1] != row["global_shape"][1]:
        first, last = last, first
    rows = {"input": {"letter": "X", "dims": f"B{last}", **inputs}, "weight": row}
    rows["output"] = {"letter": "Y", "dims": f"B{first}", **outputs}
    turned = rows["input"]["dims"][-1] == row.get("dims", "IJ")[1]
    panels = [(label, one, places) for label, one in rows.items()]
    return _panels(panels, opening, 3, signs={"input": "×", "weight": "ᵀ=" if turned else "="})


def shard_maps(runs: Runs, parameter: str | Mapping[str, str], *, columns: int = 2) -> picture.Picture:
    """Draw the same parameter under several modes, a panel each: the picture a lesson on sharding opens with.

    `parameter` is one name (or the end of one), or {label: name} where the modes name it differently.
    """
    panels = []
    for label, run in runs.items():
        name = parameter if isinstance(parameter, str) else parameter[label]
        panels.append((label, sharding.parameter(run, name), sharding.coordinates(run)))
    what = panels[0][1]["name"]
    return _panels(panels, f"Who holds which block of {what}, in {len(panels)} modes.", columns)


Panel = tuple[str, Row, Mapping[int, Mapping[str, int]]]


def _panels(
    panels: Sequence[Panel], opening: str, columns: int, signs: Mapping[str, str] | None = None
) -> picture.Picture:
    columns = min(columns, len(panels))
    high = ceil(len(panels) / columns)
    flat = all(sharding.shown_dimensions(row)[0] is None for _, row, _ in panels)
    tall = 1.75 if flat else {1: 2.6, 2: 2.7}.get(columns, 2.0)
    words = []
    with style.context():
        drawn, axes = picture.new(height=tall * high, nrows=high, ncols=columns)
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        for ax, (label, row, places) in zip(axes.flat, panels, strict=False):
            split = sharding.split(row, places)
            _draw_blocks(ax, row)
            ax.set_title("\n".join(filter(None, [label, split.mathtext])), linespacing=1.5)
            below = "\n".join(filter(None, [_share(row), split.where]))
            ax.set_xlabel(below, fontsize=10, color=style.MUTED)
            if signs and label in signs:
                ax.text(1.09, 0.5, signs[label], transform=ax.transAxes, ha="center", va="center", fontsize=15)
            said = [str(split), split.where, f"ranks block by block: {sharding.grid(row)}"]
            words.append(f"{label}: {', '.join(filter(None, said))}." if label else f"{', '.join(filter(None, said))}.")
        return picture.finish(drawn, f"{opening} {' '.join(words)}")


def _share(row: Row) -> str:
    local = {tuple(stop - start for start, stop in shard["block"]) for shard in row["shards"]}
    return "each rank: " + " or ".join(style.shape(sizes) for sizes in sorted(local))


def _ranks(count: int) -> str:
    return f"{count} rank{'s' * (count != 1)}"


STEP = 0.08  # of the drawing's width: how far a card behind another one looks out
GAP = 0.008


def _draw_blocks(ax: Axes, row: Row) -> None:
    """Draw each block as a card, the copies that further ranks hold as cards behind it, all in rank colours."""
    vertical, horizontal = sharding.shown_dimensions(row)
    sizes = row["global_shape"] or [1]
    found = sharding.holders(row)
    copies = max(len(ranks) for ranks in found.values())
    wide, tall = 1.0, (0.2 + STEP * (copies - 1) if vertical is None else 0.62)
    for block, ranks in found.items():
        left, right = (wide * edge / sizes[horizontal] for edge in (block or ((0, 1),))[horizontal])
        top, bottom = (0, tall) if vertical is None else (tall * edge / sizes[vertical] for edge in block[vertical])
        left, right, top, bottom = left + GAP, right - GAP, top + GAP, bottom - GAP
        # The stack fills the block's place: each card behind shows a strip at its top and its right.
        step = min(STEP, 0.6 * min(right - left, bottom - top) / max(1, len(ranks) - 1))
        back = step * (len(ranks) - 1)
        width, height = right - left - back, bottom - top - back
        for depth, rank in reversed(list(enumerate(ranks))):
            colour = style.rank_colour(rank)
            x, y = left + step * depth, top + back - step * depth
            ax.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor=style.BACKGROUND, linewidth=1.2))
            spot = (x + width - step / 2, y + step / 2) if depth else (x + width / 2, y + height / 2)
            ax.text(
                *spot, str(rank), color=style.text_on(colour), ha="center", va="center_baseline",
                fontsize=9 if depth else 13, fontweight="bold",
            )  # fmt: skip
    ax.set(xlim=(0, wide), ylim=(tall, 0), aspect="equal")
    ax.spines[:].set_visible(False)
    _ticks(ax.xaxis, found, horizontal, sizes, wide, ("left", "center", "right"))
    _ticks(ax.yaxis, found, vertical, sizes, tall, ("top", "center", "bottom"))


def _ticks(
    axis: Axis, found: Mapping[Any, Any], dim: int | None, sizes: Sequence[int], length: float, sides: Sequence[str]
) -> None:
    """Mark where blocks begin, only the ends when there is no room for more; end labels stay inside."""
    axis.set_tick_params(length=0, labelsize=9.5, pad=3, labelcolor=style.MUTED)
    edges = sorted({0, sizes[dim], *(block[dim][0] for block in found if block)}) if dim is not None else []
    edges = edges if len(edges) <= 5 else [edges[0], edges[-1]]
    axis.set_ticks([length * edge / sizes[dim] for edge in edges], [str(edge) for edge in edges])
    for index, label in enumerate(axis.get_ticklabels()):
        side = sides[0] if index == 0 else sides[2] if index == len(edges) - 1 else sides[1]
        label.set(horizontalalignment=side) if sides[0] == "left" else label.set(verticalalignment=side)


def mesh_map(run: RunLike, *, title: str = "") -> picture.Picture:
    """Draw every rank at its place on the mesh; a third axis becomes layers, a fourth more panels."""
    places = sharding.coordinates(run) or {0: {}}
    names = list(next(iter(places.values())))
    sizes = {name: 1 + max(place[name] for place in places.values()) for name in names}
    # The last axes are the innermost ones: they make the grid, what is before them layers and panels.
    across, down, behind = [*reversed(names), None, None, None][:3]
    outer = names[:-3]
    panels = sorted({tuple(place[name] for name in outer) for place in places.values()})
    tall = 0.55 + 0.62 * sizes.get(down, 1) + 0.45 * (sizes.get(behind, 1) - 1)
    with style.context():
        drawn, axes = picture.new(height=max(1.2, tall), ncols=len(panels))
        for ax, panel in zip(axes.flat, panels, strict=True):
            chosen = {r: p for r, p in places.items() if tuple(p[name] for name in outer) == panel}
            _draw_mesh(ax, chosen, (across, down, behind), sizes)
            label = ", ".join(f"{name} {index}" for name, index in zip(outer, panel, strict=True))
            ax.set_title(label or title)
        listed = "; ".join(
            f"rank {rank} at " + ", ".join(f"{name} {index}" for name, index in place.items())
            for rank, place in places.items()
        )
        shape = " × ".join(f"{name} {size}" for name, size in sizes.items())
        return picture.finish(drawn, f"{_ranks(len(places))} on a mesh of {shape}: {listed}." if names else "One rank.")


def _draw_mesh(ax: Axes, places: Mapping, names: tuple, sizes: Mapping) -> None:
    across, down, behind = names
    shift_x, shift_y = 0.42, -0.5
    for rank, place in sorted(places.items(), key=lambda item: -item[1].get(behind, 0)):
        layer = place.get(behind, 0)
        x = place.get(across, 0) * (1.6 if behind else 1.12) + layer * shift_x
        y = place.get(down, 0) * (1.5 if behind else 1.12) + layer * shift_y
        colour = style.rank_colour(rank)
        ax.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor=style.BACKGROUND, linewidth=2))
        spot = (x + 0.8, y + 0.25) if layer else (x + 0.5, y + 0.5)
        ax.text(*spot, str(rank), color=style.text_on(colour), ha="center", va="center", weight="bold")
    ax.set_aspect("equal")
    ax.autoscale_view()
    ax.invert_yaxis()
    ax.axis("off")
    hint = [f"→ {across} ({sizes[across]})" if across else "", f"↓ {down} ({sizes[down]})" if down else ""]
    hint.append(f"↗ {behind} ({sizes[behind]})" if behind else "")
    ax.text(0, -0.02, "   ".join(filter(None, hint)), transform=ax.transAxes, va="top", fontsize=10, color=style.MUTED)
