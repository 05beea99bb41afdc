"""How a page loads its pictures: only those that are seen, their room kept free until they come, thumbnails small.

Each picture is there twice, for the light and for the dark page. A browser leaves out a hidden picture only when it
may load it late; and a page jumps while pictures arrive unless their sizes are written down.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from docutils import nodes
from handson.show import picture, scraper, style
from PIL import Image
from sphinx.application import Sphinx

SIZE = re.compile(r'<svg[^>]*?\bheight="([\d.]+)(pt|px)?"[^>]*?\bwidth="([\d.]+)(pt|px)?"|'
                  r'<svg[^>]*?\bwidth="([\d.]+)(pt|px)?"[^>]*?\bheight="([\d.]+)(pt|px)?"')  # fmt: skip


def figures(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Do as the kit's scraper does, and keep a lesson's first picture as a PNG: its thumbnail is made from that.

    A thumbnail that is a copy of the SVG is as heavy as the picture, and a gallery's page shows one for each lesson.
    """
    iterator = block_vars["image_path_iterator"]
    if not len(iterator) and plt.get_fignums():
        with style.context():
            path = Path(iterator.image_path.format(1)).with_suffix(".png")
            plt.figure(plt.get_fignums()[0]).savefig(path, dpi=80, bbox_inches="tight", pad_inches=0.06)
    return scraper.figures(block, block_vars, gallery_conf)


def both_themes(app: Sphinx, drawn: picture.Picture, name: str) -> list[nodes.Node]:
    """Save a picture that no lesson draws, close it, and return what shows it on the light and on the dark page."""
    folder = Path(app.srcdir) / "lessons" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    light = picture.svg(drawn, transparent=True)
    plt.close(drawn)
    made: list[nodes.Node] = []
    for theme, svg in (("light", light), ("dark", style.dark(light))):
        path = folder / f"{name}_{theme}.svg"
        path.write_text(svg, encoding="utf-8")
        uri = "/" + Path(os.path.relpath(path, app.srcdir)).as_posix()
        made.append(nodes.image(uri=uri, alt=drawn.alt, classes=["handson-picture", f"only-{theme}"]))
    return made


def size(svg: str) -> tuple[int, int] | None:
    """Return (width, height) in CSS pixels that an SVG's first element names, or None."""
    found = SIZE.search(svg[:4000])
    if found is None:
        return None
    height, high_unit, width, wide_unit, *others = found.groups()
    if height is None:
        width, wide_unit, height, high_unit = others
    scale = {"pt": 4 / 3, "px": 1, None: 1}
    return round(float(width) * scale[wide_unit]), round(float(height) * scale[high_unit])


def prepare(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Before a page is written."""
    if app.builder.format != "html":
        return
    for image in doctree.findall(nodes.image):
        if "handson-picture" in image["classes"]:
            image["loading"] = "lazy"
            path = Path(app.srcdir) / image["uri"].lstrip("/")
            if path.suffix == ".svg" and (found := size(path.read_text(encoding="utf-8"))):
                image["width"], image["height"] = (str(length) for length in found)


HEAVY = 30_000  # characters from which a picture is worth the work
COMMENTS = re.compile(r"<!--.*?-->|<\?xml.*?\?>|<!DOCTYPE.*?>", re.S)
PLACES = re.compile(r'(?<= d=")[^"]*|(?<= [xy]=")[^"]*|(?<=translate\()[^)]*')


def smaller(svg: str) -> str:
    """Return matplotlib's SVG without what nobody sees: comments, names that nothing refers to, hundredths of a pixel.

    A scale keeps its digits: it multiplies the numbers of a letter's outline, which are large.
    """
    svg = COMMENTS.sub("", svg)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = PLACES.sub(lambda found: re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", found[0]), svg)
    svg = re.sub(r'(?<= d=")[^"]*', lambda found: re.sub(r"\s*([A-Za-z])\s*", r"\1", found[0]).strip(), svg)
    svg = re.sub(r'(?<= style=")[^"]*', lambda found: re.sub(r"([:;]) ", r"\1", found[0]), svg)
    return re.sub(r">\s+<", "><", svg.replace("xlink:href=", "href=")).lstrip()


COLOURS = 64  # of a thumbnail: a diagram has few, and most of these are the edges of its letters


def fewer_colours(path: Path) -> None:
    """Write a PNG again with a palette, a third of its size or less; one that has a palette stays as it is."""
    with Image.open(path) as picture:
        if picture.mode == "P":
            return
        reduced = picture.convert("RGB").quantize(COLOURS)
    reduced.save(path, optimize=True)


def shrink(app: Sphinx, exception: Exception | None) -> None:
    """After the build: make the copies of the pictures smaller; the lessons' own stay as they were drawn."""
    if exception is None and app.builder.format == "html":
        folder = Path(app.outdir) / app.builder.imagedir
        for path in folder.glob("*_thumb.png"):
            fewer_colours(path)
        for path in folder.glob("*.svg"):
            svg = path.read_text(encoding="utf-8")
            if len(svg) > HEAVY and svg.startswith("<?xml") and "figure_1" in svg:
                path.write_text(smaller(svg), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Run when all other changes to a page are made."""
    app.connect("doctree-resolved", prepare, priority=900)
    app.connect("build-finished", shrink)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
