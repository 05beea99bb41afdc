"""The map of Colossal-AI: boxes with links to the lessons and to upstream, drawn in HTML from the installed package."""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape
from pathlib import Path

from handson import lessons, sources
from handson.show import components, script, tables
from handson.show.components import Band, Box
from handson.show.inventory import Module, Package
from handson.show.style import quantity


@dataclass(frozen=True)
class ComponentMap:
    """Every box with its modules; `page` is the lesson whose page shows it, from which links are relative."""

    package: Package
    modules: dict[str, list[Module]]
    page: str | None

    @property
    def caption(self) -> str:
        """What the map shows, and what its sizes are."""
        everything = list(self.package.modules.values())
        return (
            f"{self.package.name} {self.package.version}: {size(everything)}, "
            f"{sum(len(module.classes) for module in everything)} public classes. Lines are those of Python code, "
            "without blank ones and comments, and a bar is as long as its box has lines. "
            f"{len(self.package.dead)} modules that no host can import are in no box."
        )

    def lines(self, *titles: str) -> int:
        """Return the lines of code in these boxes."""
        return sum(module.lines for title in titles for module in self.modules[title])

    def without_lesson(self) -> list[str]:
        """Return the titles of the boxes that no lesson uses."""
        return [box.title for _, box in components.boxes() if not box.lessons]

    def _repr_html_(self) -> str:
        # Lists by role: sites and notebooks indent <ul>, each in its own way.
        bands = "".join(self._band(band) for band in components.BANDS)
        return (
            f'{tables._style()}<figure class="handson-map" aria-label="Map of {escape(self.package.name)}">'
            f'<div class="bands" role="list">{bands}</div><figcaption>{escape(self.caption)}</figcaption></figure>'
        )

    def _band(self, band: Band) -> str:
        total = quantity(self.lines(*(box.title for box in band.boxes)))
        boxes = "".join(self._box(box) for box in band.boxes)
        return (
            f'<div class="band {band.area}" role="listitem"><div class="name">{escape(band.title)} '
            f'<span>{total} lines</span></div><div class="boxes" role="list">{boxes}</div></div>\n'
        )

    def _box(self, box: Box) -> str:
        share = 100 * self.lines(box.title) / max(map(self.lines, self.modules))
        names = ", ".join(f"<code>{escape(name)}</code>" for name in self.exports(box))
        sources = ", ".join(self._source(name) for name in box.modules)
        docs = f' <a href="{components.DOCS}{box.docs}">Reference{_for(box)}</a>' if box.docs else ""
        return (
            f'<div class="box{" wide" * box.wide}" role="listitem">'
            f'<div><div class="title">{escape(box.title)}</div><div>{escape(box.what)}</div>'
            + (f'<div class="names">{names}</div>' if names else "")
            + f'{self._lessons(box)}</div><div class="facts"><div class="upstream"><span>{sources}</span>{docs}</div>'
            f'<div class="size"><span class="bar" style="--share:{share:.1f}"></span> '
            f"{escape(size(self.modules[box.title]))}</div></div></div>\n"
        )

    def exports(self, box: Box) -> list[str]:
        """Return the public names that a box lists."""
        names = self.package.names(components.full_name(self.package, box.exports)) if box.exports else []
        # Not the class that the others are made from, whose name ends theirs.
        return [name for name in names if not all(other.endswith(name) for other in names)]

    def _source(self, name: str) -> str:
        module = self.package.modules[components.full_name(self.package, name)]
        return f'<a href="{components.source(self.package, module)}"><code>{escape(name or module.name)}</code></a>'

    def _lessons(self, box: Box) -> str:
        items, coming = [], []
        for lesson in box.lessons:
            title, target = escape(components.LESSONS[lesson]), link(lesson, self.page)
            if not exists(lesson):
                coming.append(title)
            else:
                items.append(f'<a href="{escape(target)}">{title}</a>' if target else f"<span>{title}</span>")
        items = [f'<span role="listitem">{item}</span> ' for item in items]
        if coming:
            items.append(f'<span class="coming" role="listitem">coming: {", ".join(coming)}</span>')
        return f'<div class="lessons" role="list" aria-label="Its lessons">{"".join(items)}</div>' if items else ""

    def __str__(self) -> str:
        drawn = [self.caption]
        for band in components.BANDS:
            drawn += ["", band.title]
            for box in band.boxes:
                named = [components.LESSONS[name] + ", coming" * (not exists(name)) for name in box.lessons]
                drawn.append(f"  {box.title}: {box.what}; {size(self.modules[box.title])}")
                drawn += [f"    lessons: {'; '.join(named)}"] * bool(named)
        return "\n".join(drawn)

    __repr__ = __str__


def component_map(package: Package) -> ComponentMap:
    """Draw the map of a package; in a plain script it is printed."""
    drawn = ComponentMap(package, components.modules_of(package), lessons.current_lesson())
    if script.running():
        print(drawn, end="\n\n")
    return drawn


def _for(box: Box) -> str:
    """Return what only a screen reader says: there are many links with the same word."""
    return f'<span class="for"> for {escape(box.title)}</span>'


def size(modules: list[Module]) -> str:
    """Return how large some modules are together."""
    lines = sum(module.lines for module in modules)
    return f"{quantity(lines)} line{'s' * (lines != 1)}, {len(modules)} module{'s' * (len(modules) != 1)}"


def exists(lesson: str) -> bool:
    """Whether a lesson, or a topic with a lesson, is in the gallery; outside a checkout there is no telling."""
    if sources.CHECKOUT is None:
        return True
    path = sources.CHECKOUT / "gallery" / lesson
    return any(path.glob("plot_*.py")) if "/" not in lesson else path.with_suffix(".py").is_file()


def link(lesson: str, page: str | None) -> str | None:
    """Return the address of a lesson's page from another's; none outside the site, in a notebook say."""
    if page is None:
        return None
    target = lesson if "/" in lesson else f"{lesson}/index"
    return f"{os.path.relpath(target, Path(page).parent)}.html"
