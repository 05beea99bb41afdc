"""A training script on the page, whole or as what changed since the one before: read from the files that were run."""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass
from html import escape

from handson import sources
from handson.show import script, tables


@dataclass(frozen=True)
class Code:
    """Lines of code, each as text and as HTML, under a caption; `label` is what a screen reader calls the region."""

    caption: str
    label: str
    lines: list[str]
    html: list[str]

    def __post_init__(self) -> None:
        """In a plain script, where nobody displays a last expression, print."""
        if script.running():
            print(f"{self}\n")

    def _repr_html_(self) -> str:
        return (
            f'{tables._style()}<div class="handson-code highlight-python notranslate"><p>{escape(self.caption)}</p>'
            f'<div class="highlight"><pre tabindex="0" role="region" aria-label="{escape(self.label)}">'
            f'<span class="lines">{"".join(self.html)}</span></pre></div></div>'
        )

    def __str__(self) -> str:
        return "\n".join([self.caption, "", *self.lines])

    __repr__ = __str__


def source(name: str) -> Code:
    """Return a training script as it is, for example `step_by_step/step1_plain.py`."""
    text = sources.find_script(name).read_text(encoding="utf-8")
    lines = text.splitlines()
    caption = f"{_file(name)}, {len(lines)} lines"
    return Code(caption, caption, lines, [f"{line}\n" for line in _highlighted(text)])


def diff(old: str, new: str, *, context: int = 3) -> Code:
    """Return what changes from one training script to the next, as a unified diff.

    Added lines begin with + and lie on a tint, removed ones begin with - and lie on grey; the signs are text, so that
    nothing hangs on a colour.
    """
    texts = [sources.find_script(name).read_text(encoding="utf-8") for name in (old, new)]
    before, after = (text.splitlines() for text in texts)
    coloured = [_highlighted(text) for text in texts]
    lines, html = [], []
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for group in matcher.get_grouped_opcodes(context):
        (_, i1, _, j1, _), (_, _, i2, _, j2) = group[0], group[-1]
        lines.append(f"@@ -{i1 + 1},{i2 - i1} +{j1 + 1},{j2 - j1} @@")
        html.append(f'<span class="hunk">{lines[-1]}\n</span>')
        for kind, i1, i2, j1, j2 in group:
            if kind == "equal":
                lines += [f" {line}" for line in before[i1:i2]]
                html += [f" {line}\n" for line in coloured[0][i1:i2]]
                continue
            lines += [f"-{line}" for line in before[i1:i2]] + [f"+{line}" for line in after[j1:j2]]
            html += [f"<del>-{line}\n</del>" for line in coloured[0][i1:i2]]
            html += [f"<ins>+{line}\n</ins>" for line in coloured[1][j1:j2]]
    added, removed = (sum(line.startswith(sign) for line in lines) for sign in "+-")
    caption = f"{_file(old)} → {_file(new)}: {added} lines added, {removed} removed"
    return Code(caption, f"Changes from {_file(old)} to {_file(new)}", lines, html)


def _file(name: str) -> str:
    return name.rpartition("/")[2]


def _highlighted(text: str) -> list[str]:
    """Return each line as HTML, in Pygments' classes where it is installed (the site's theme colours them)."""
    if importlib.util.find_spec("pygments") is None:
        return [escape(line) for line in text.splitlines()]
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return highlight(text, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True)).splitlines()
