"""Sphinx-Gallery's view of our pictures: each saved as SVG for the light and the dark page, with its alt text.

conf.py names it by a string, `"image_scrapers": ("handson.show.scraper.figures",)`. A thumbnail is a copy of the
light SVG.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from handson.show import picture, style

_IMAGE = """
.. image:: /{path}
   :alt: {alt}
   :class: sphx-glr-single-img handson-picture {theme}
"""


def figures(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save every open figure in both themes and return the reST that shows them; close them all."""
    try:
        return "".join(_saved(plt.figure(n), block_vars, gallery_conf["src_dir"]) for n in plt.get_fignums())
    finally:
        plt.close("all")


def _saved(figure: plt.Figure, block_vars: dict[str, Any], source: str) -> str:
    alt = getattr(figure, "alt", "")
    if not alt:
        lesson = Path(block_vars["src_file"]).name
        raise ValueError(f"{lesson}: a figure has no alternative text; draw it with handson.show, or set .alt")
    light = Path(block_vars["image_path_iterator"].next()).with_suffix(".svg")
    dark = light.with_name(f"{light.stem}_dark.svg")
    drawn = picture.svg(figure, transparent=True)
    light.write_text(drawn)
    dark.write_text(style.dark(drawn))
    return "".join(
        _IMAGE.format(path=Path(os.path.relpath(path, source)).as_posix(), alt=alt, theme=theme)
        for path, theme in ((light, "only-light"), (dark, "only-dark"))
    )
