"""A figure that knows what it shows: its alternative text travels with it to a page, a notebook or a file."""

from __future__ import annotations

import io
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from handson.show import script, style


class Picture(Figure):
    """A matplotlib figure with an alternative text."""

    alt = ""

    def _ipython_display_(self) -> None:
        """Show once: a notebook would draw an open figure both as a cell's value and at the cell's end."""
        from IPython.display import Image, display

        display(Image(png(self), width=round(96 * self.get_figwidth()), alt=self.alt))
        plt.close(self)


def new(*, height: float, width: float = style.WIDTH, **subplots: Any) -> tuple[Picture, Any]:
    """Return a picture and its axes (`squeeze=False`: always an array). Call inside `style.context()`."""
    picture, axes = plt.subplots(
        FigureClass=Picture, figsize=(width, height), layout="constrained", squeeze=False, **subplots
    )
    return picture, axes


def finish(picture: Picture, alt: str) -> Picture:
    """Give a picture its alternative text; in a plain script also save it and say where."""
    picture.alt = " ".join(alt.split())
    if script.running():
        path = script.next_picture()
        path.write_bytes(png(picture))
        plt.close(picture)
        print(f"picture {path}: {picture.alt}\n")
    return picture


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG of two pixels per CSS pixel."""
    drawn = io.BytesIO()
    with style.context():
        figure.savefig(drawn, format="png", dpi=192, bbox_inches="tight", pad_inches=0.06)
    return drawn.getvalue()


def svg(figure: Figure, *, transparent: bool = False) -> str:
    """Return a figure as SVG text: tight, without dates, the same bytes at every build."""
    drawn = io.StringIO()
    with style.context():
        figure.savefig(
            drawn,
            format="svg",
            bbox_inches="tight",
            pad_inches=0.06,
            transparent=transparent,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return drawn.getvalue()
