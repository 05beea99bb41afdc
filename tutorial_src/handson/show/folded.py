"""An answer that a reader unfolds; its text was computed by the lesson, not typed into it."""

from __future__ import annotations

from html import escape


class Answer:
    """Lines of text behind a summary that says what is hidden."""

    def __init__(self, *lines: str, summary: str = "Show the answer, computed by this page") -> None:
        self.lines, self.summary = lines, summary

    def __str__(self) -> str:
        return "\n".join([f"{self.summary}:", *self.lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        body = "".join(f"<p>{escape(line)}</p>" for line in self.lines)
        return f'<details class="handson-answer"><summary>{escape(self.summary)}</summary>{body}</details>'


def answer(*lines: str) -> Answer:
    """Fold the answer of an exercise; in a plain script it is printed."""
    from handson.show import script

    folded = Answer(*lines)
    if script.running():
        print(folded, end="\n\n")
    return folded
