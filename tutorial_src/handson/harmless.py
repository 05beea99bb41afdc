"""Edits that make no number different, so that a run's key passes over them. Standard library alone.

Each is a file `NAME.diff` below harmless_edits/, for the source that keys call NAME: why the edit is harmless, then a
unified diff of it. A key takes such a source as it was before the edit. It passes over these very lines and no
others: whatever else changes in the source makes runs stale as ever.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_HUNK = re.compile(r"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@")


@dataclass(frozen=True)
class Edit:
    """An edit of the source `name`: why it is harmless, in one paragraph, and the lines of its diff."""

    name: str
    why: str
    lines: tuple[str, ...]

    def undone(self, source: str) -> str:
        """The source as it was before the edit; as it is, where it does not hold the edit."""
        lines, found = source.splitlines(keepends=True), [*self.lines]
        starts = [index for index, line in enumerate(found) if _HUNK.match(line)]
        # From the last hunk to the first: what lies above keeps its line numbers.
        for start, end in reversed([*zip(starts, [*starts[1:], len(found)], strict=True)]):
            at = int(_HUNK.match(found[start])[2]) - 1
            # An empty line of the context may have lost its space.
            body = [line if line.strip("\n") else " \n" for line in found[start + 1 : end]]
            after = [line[1:] for line in body if line[0] in " +"]
            if lines[at : at + len(after)] != after:
                return source
            lines[at : at + len(after)] = [line[1:] for line in body if line[0] in " -"]
        return "".join(lines)


def edits(folder: Path) -> dict[str, Edit]:
    """Every edit below a folder, by the name of its source."""
    found = {}
    for file in sorted(folder.rglob("*.diff")):
        name = file.relative_to(folder).as_posix().removesuffix(".diff")
        why, _, diff = file.read_text(encoding="utf-8").partition("--- ")
        found[name] = Edit(name, " ".join(why.split()), tuple(diff.splitlines(keepends=True)))
    return found
