"""Who computes what: one training step as a square of images and layers, cut among the ranks in their colours."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from handson.show import picture, style
from handson.show.conditions import RunLike, Runs

Share = dict[str, Any]
SHIFT = 0.17  # how far one copy of the same work lies from the next, of the square's side


def work_map(runs: Runs) -> picture.Picture:
    """Draw each run's step: images from left to right, layers from top to bottom, each part in its rank's colour.

    Read from the rows `share`. Work that several ranks do alike lies in as many sheets, one behind the other. A
    layer that ranks share is cut across. Images are ordered by the rank that takes them.
    """
    words = []
    with style.context():
        drawn, axes = picture.new(height=1.75, ncols=len(runs))
        for ax, (label, run) in zip(axes.flat, runs.items(), strict=True):
            shares = {row["rank"]: row for row in run.rows("share")}
            _draw(ax, shares)
            ax.set_title(label, fontsize=10, loc="center")
            words.append(f"{label}: {_described(shares, run)}")
        first = next(iter(next(iter(runs.values())).rows("share")))
        axes[0, 0].set_ylabel(f"← {first['depth']} layers", fontsize=9.5)
        axes[0, 0].set_xlabel(f"{first['batch']} images →", fontsize=9.5)
        return picture.finish(drawn, f"Who computes what in one training step. {'. '.join(words)}.")


def _draw(ax: Axes, shares: dict[int, Share]) -> None:
    sheets, left = _sheets(shares), _order_of_images(shares)
    for depth, ranks in enumerate(sheets):
        level = 2 + len(sheets) - depth
        over = {"zorder": level}
        for rank in ranks:
            share = shares[rank]
            x, width = left[tuple(share["images"])] + depth * SHIFT, len(share["images"]) / share["batch"]
            start, stop = share["features"]
            for layer in share["layers"]:
                y, height = (layer + start) / share["depth"] - depth * SHIFT, (stop - start) / share["depth"]
                ax.add_patch(Rectangle((x, y), width, height, facecolor=style.rank_colour(rank), linewidth=0, **over))
                if layer and not start:
                    ax.plot([x, x + width], [y, y], color=style.BACKGROUND, linewidth=0.7, **over)
            # In the middle of its layers; side by side where ranks share a layer. Of a sheet behind others only the
            # right edge shows.
            middle = (share["layers"][0] + share["layers"][-1] + 1) / 2 / share["depth"]
            spot = (
                (x + width * (start + stop) / 2, middle) if depth == 0 else (x + width - SHIFT / 2, 0.5 - depth * SHIFT)
            )
            _name(ax, rank, spot, level + 0.5)
        corner = (depth * SHIFT, -depth * SHIFT)
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=style.BACKGROUND, linewidth=1.2, **over))
    reach = (len(sheets) - 1) * SHIFT
    ax.set(xlim=(-0.02, 1.02 + reach), ylim=(1.02, -0.02 - reach), aspect="equal", xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _name(ax: Axes, rank: int, spot: tuple[float, float], level: float) -> None:
    """Write a rank's number on a ground of its own colour: a layer's part may be thinner than the number is high."""
    colour = style.rank_colour(rank)
    ground = {"facecolor": colour, "edgecolor": "none", "boxstyle": "square,pad=0.15"}
    ax.text(*spot, str(rank), color=style.text_on(colour), ha="center", va="center", weight="bold", fontsize=9.5,
            bbox=ground, zorder=level)  # fmt: skip


def _sheets(shares: dict[int, Share]) -> list[list[int]]:
    """Return the ranks in sheets: those with equal shares lie in different ones."""
    sheets: list[list[int]] = []
    seen: dict[str, int] = {}
    for rank, share in sorted(shares.items()):
        key = str([share[name] for name in ("images", "layers", "features")])
        depth = seen[key] = seen.get(key, -1) + 1
        if depth == len(sheets):
            sheets.append([])
        sheets[depth].append(rank)
    return sheets


def _order_of_images(shares: dict[int, Share]) -> dict[tuple[int, ...], float]:
    """Return where each set of images begins, side by side in the order of ranks."""
    left, where = 0.0, {}
    for _, share in sorted(shares.items()):
        images = tuple(share["images"])
        if images not in where:
            where[images] = left
            left += len(images) / share["batch"]
    return where


def _described(shares: dict[int, Share], run: RunLike) -> str:
    parts = []
    alike: dict[str, list[int]] = {}
    for rank, share in sorted(shares.items()):
        whole = len(share["images"]) == share["batch"]
        images = f"all {share['batch']} images" if whole else f"{len(share['images'])} images of their own"
        layers, depth = share["layers"], share["depth"]
        which = f"all {depth} layers" if len(layers) == depth else f"layers {layers[0]} to {layers[-1]}"
        part = share["features"][1] - share["features"][0]
        of = "" if part == 1 else f"1/{round(1 / part)} of "
        alike.setdefault(f"{images}, {of}{which}", []).append(rank)
    for text, ranks in alike.items():
        who = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {style.listed([str(rank) for rank in ranks])} each"
        parts.append(f"{who} {text if len(ranks) > 1 else text.replace('of their own', 'of its own')}")
    return "; ".join(parts)
