"""One look for every picture and number: a colour per rank, colours that have a light and a dark value, units.

A picture is drawn once, in light; `dark()` swaps the named colours in its SVG, so both versions always agree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager

import matplotlib

# One colour per rank, the same on every page. Any two stay >= 16 apart (CIE76) in normal, protan, deutan and
# tritan sight (tests/test_show.py simulates them). There is no red: red is a failure.
RANK_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#54278f", "#c0c0c0")

# name: (light, dark). Bars and lines that are not a rank's are drawn in these. Each light value is used for
# nothing else, because `dark()` finds it by its value.
NAMED = {
    "foreground": ("#1f2630", "#e4e8ec"),
    "muted": ("#56616d", "#a9b3bd"),
    "grid": ("#dde2e7", "#353d48"),
    "background": ("#ffffff", "#14181e"),
    "neutral": ("#6b7c8f", "#8195aa"),
    "pale": ("#c5ced8", "#46535f"),
    "failure": ("#b3261e", "#ff8a80"),
}
FOREGROUND, MUTED, GRID, BACKGROUND, NEUTRAL, PALE, FAILURE = (light for light, _ in NAMED.values())

WIDTH = 6.0  # inches, 576 CSS px: at a phone's 358 px its 11 pt text is still 9 px high

RC = {
    "figure.facecolor": BACKGROUND,
    "figure.max_open_warning": 0,
    "savefig.facecolor": BACKGROUND,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": FOREGROUND,
    "axes.titlecolor": FOREGROUND,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": FOREGROUND,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": FOREGROUND,
    "ytick.labelcolor": FOREGROUND,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "font.size": 11,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every host
    "hatch.linewidth": 0.8,
    "svg.fonttype": "path",
    "svg.hashsalt": "handson",
}


def context() -> AbstractContextManager[None]:
    """Return a context in which matplotlib draws in the site's look and leaves the reader's settings alone."""
    return matplotlib.rc_context(RC)


def rank_colour(rank: int) -> str:
    """Return the colour that means this rank on every page (they repeat after eight)."""
    return RANK_COLOURS[rank % len(RANK_COLOURS)]


def luminance(colour: str) -> float:
    """Return the relative luminance of a hex colour, as WCAG defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def text_on(colour: str) -> str:
    """Return the text colour, near-black or near-white, that reads better on `colour` in both themes."""
    return "#000001" if luminance(colour) > 0.179 else "#fffffe"


def dark(svg: str) -> str:
    """Return the dark version of an SVG drawn in the named light colours."""
    return re.sub(r"(?<=[: \"])#[0-9a-f]{6}\b", lambda m: _TO_DARK.get(m.group(), m.group()), svg)


_TO_DARK = dict(NAMED.values())


def number(value: float | None) -> str:
    """Three significant digits: 0.0123, 48.4, 1230, 7.20 × 10⁻⁷; an integer below a million stays exact."""
    if value is None:
        return "—"
    if isinstance(value, int) and abs(value) < 1_000_000:
        return f"{value:,}".replace("-", "−")
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    power = int(exponent)
    if -4 < power < 6:
        text = f"{float(f'{value:.2e}'):,.{max(0, 2 - power)}f}"
    else:
        text = f"10{str(power).translate(_SUPERSCRIPT)}"
        if value != float(f"1e{power}"):
            text = f"{mantissa} × {text}"
    return text.replace("-", "−")


_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_TIME = (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0))
_COUNT = ("", "k", "M", "G", "T")


def quantity(value: float | None, unit: str = "") -> str:
    """Return a value with three significant digits and a unit that suits its size.

    `quantity(12345678, "B")` is "11.8 MiB"; "s" and "ms" choose among ns, µs, ms, s; any other unit, or none,
    takes k, M, G from 1000 on: `quantity(48426)` is "48.4 k", `quantity(5320, "images/s")` "5.32 k images/s".
    """
    if value is None or not math.isfinite(value):
        return number(value)
    if unit == "B":
        index = _step(value, 1024, len(_BINARY))
        return f"{_scaled(value, 1024, index)} {_BINARY[index]}"
    if unit in ("s", "ms"):
        seconds = value * (1e-3 if unit == "ms" else 1.0)
        if seconds == 0:
            return f"0 {unit}"
        name, scale = next((pair for pair in _TIME if abs(float(f"{seconds / pair[1]:.2e}")) < 1000), _TIME[-1])
        return f"{number(seconds / scale)} {name}"
    index = _step(value, 1000, len(_COUNT))
    return " ".join(part for part in (_scaled(value, 1000, index), _COUNT[index], unit) if part)


def relative(value: float | None, baseline: float | None) -> str:
    """Return how many times the baseline a value is: relative(3.74, 2) is "1.87×"."""
    if value is None or not baseline:
        return "—"
    return f"{number(float(value / baseline))}×"


def percent(part: float, whole: float) -> str:
    """Return a share of a whole: percent(3, 8) is "37.5 %"."""
    return f"{number(100 * part / whole)} %"


def listed(names: Sequence[str]) -> str:
    """Return names as prose: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def shape(sizes: Sequence[int]) -> str:
    """Return a tensor's shape as 64 × 192."""
    return " × ".join(str(size) for size in sizes) if sizes else "scalar"


def _step(value: float, base: int, steps: int) -> int:
    """Return the power of `base` at which the rounded value has at most three digits before the point."""
    index = 0
    while index < steps - 1 and abs(float(f"{value / base**index:.2e}")) >= 1000:
        index += 1
    return index


def _scaled(value: float, base: int, index: int) -> str:
    """Return the value in its unit; a whole number that needs no unit stays exact."""
    return number(value if index == 0 else value / base**index)
