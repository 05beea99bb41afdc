"""The small drawing in a table cell: a parameter cut into blocks in the colours of the ranks that hold them."""

from __future__ import annotations

from html import escape
from typing import Any

from handson.show.sharding import described, grid, holders, shown_dimensions
from handson.show.style import rank_colour, text_on
from handson.show.tables import Cell

WIDTH, HEIGHT, FLAT = 104, 44, 16  # px; not to scale: a 4096 × 1 bias would be a hair line


def block_diagram(row: dict[str, Any]) -> Cell:
    """Return the drawing of a "parameter" row; a block that several ranks hold is shared out among their colours."""
    vertical, horizontal = shown_dimensions(row)
    height = FLAT if vertical is None else HEIGHT
    sizes = row["global_shape"]
    drawn = []
    for block, ranks in holders(row).items():
        top, bottom = _scaled(block, sizes, vertical, height)
        left, right = _scaled(block, sizes, horizontal, WIDTH)
        width, tall = (right - left) / len(ranks), bottom - top
        for place, rank in enumerate(ranks):
            x, colour = left + place * width, rank_colour(rank)
            drawn.append(f'<rect x="{x:g}" y="{top:g}" width="{width:g}" height="{tall:g}" fill="{colour}"/>')
            if width >= 10 and tall >= 11:
                x, y = x + width / 2, top + tall / 2 + 3.5
                drawn.append(f'<text x="{x:g}" y="{y:g}" fill="{text_on(colour)}">{rank}</text>')
        drawn.append(f'<rect class="edge" x="{left:g}" y="{top:g}" width="{right - left:g}" height="{tall:g}"/>')
    words = described(row)
    return Cell(
        grid(row),
        f'<svg class="blocks" role="img" aria-label="{escape(words)}" width="{WIDTH + 2}" height="{height + 2}"'
        f' viewBox="-1 -1 {WIDTH + 2} {height + 2}">{"".join(drawn)}</svg>',
    )


def rank_keys(ranks: list[int]) -> Cell:
    """Return the ranks in their colours, as a note under a table."""
    chips = " ".join(
        f'<span class="rank" style="background:{rank_colour(r)};color:{text_on(rank_colour(r))}">{r}</span>'
        for r in ranks
    )
    return Cell("", f"Ranks: {chips}")


def _scaled(block: Any, sizes: list[int], dim: int | None, length: int) -> tuple[float, float]:
    if dim is None or not sizes:
        return 0, length
    start, stop = block[dim]
    return length * start / sizes[dim], length * stop / sizes[dim]
