"""`handson status`: each recorded run, whether its code is still the code here, where and when it was made.

Standard library alone, so that a bare Python answers; nothing is executed, files are read and hashed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from handson import provenance, sources, store


def lesson_names() -> list[str]:
    """Every lesson in the gallery, as `topic/name`, in order."""
    if sources.CHECKOUT is None:
        return []
    gallery = sources.CHECKOUT / "gallery"
    return [path.relative_to(gallery).with_suffix("").as_posix() for path in sorted(gallery.glob("*/plot_*.py"))]


def collect() -> list[dict[str, Any]]:
    """One entry for each recording and for each lesson that has none."""
    root = store.recordings()
    entries = [_entry(path, root) for path in sorted(root.rglob("*.json"))] if root and root.is_dir() else []
    having = {lesson for entry in entries for lesson in entry["lessons"]}
    for lesson in lesson_names():
        if lesson not in having and _starts_jobs(lesson):
            entries.append(
                {
                    "lessons": [lesson],
                    "run": "(no recording)",
                    "state": "missing",
                    "detail": "",
                    "way": "live",
                }
            )
    return entries


def _starts_jobs(lesson: str) -> bool:
    return "launch(" in (sources.CHECKOUT / "gallery" / f"{lesson}.py").read_text(encoding="utf-8")


def _entry(path: Path, root: Path) -> dict[str, Any]:
    name = path.relative_to(root).as_posix()
    try:
        run, _ = store.load(path)
    except store.StoreError as error:
        return {"lessons": [], "run": name, "state": "corrupt", "detail": str(error), "way": "live"}
    entry = {
        "lessons": run.lessons,
        "run": run.title(),
        "file": name,
        "key": run.key,
        "preset": run.preset,
        "ranks": run.ranks,
        "hardware": run.provenance["hardware"],
        "date": run.provenance["date"],
    }
    try:
        request = store.Request.again(run)
        changed = store.changed_files(run, request)
    except (FileNotFoundError, SyntaxError) as error:
        return {**entry, "state": "stale", "detail": str(error), "way": "live"}
    state = "stale" if changed else "fresh"
    here = "live" if len(provenance.gpus()) >= run.ranks or run.preset == "laptop" or changed else "recorded"
    if here == "live" and store.cached(request):
        here = "cached"
    return {**entry, "state": state, "detail": ", ".join(f"{file} changed" for file in changed), "way": here}


def status(*, as_json: bool, check: bool) -> int:
    """Print the state of every recording; with `check`, 1 where one is stale, missing or corrupt."""
    entries = collect()
    bad = [entry for entry in entries if entry["state"] != "fresh"]
    if as_json:
        edits = {edit.name: edit.why for edit in sources.harmless_edits().values()}
        counts = {"fresh": len(entries) - len(bad), "not_fresh": len(bad), "harmless_edits": edits}
        print(json.dumps({"runs": entries} | counts, indent=1))
        return int(bool(check and bad))
    lesson = None
    for entry in sorted(entries, key=lambda e: (e["lessons"], e["run"])):
        if entry["lessons"] != lesson:
            lesson = entry["lessons"]
            print(f"\n{', '.join(lesson) or '(unreadable)'}")
        facts = " · ".join(str(entry[k])[:16] for k in ("key", "preset", "date") if k in entry)
        if entry["state"] == "missing":
            print("  missing  no recording: `python -m handson record` makes it on a GPU host")
            continue
        where = entry.get("hardware", "")
        print(f"  {entry['state']:8} {entry['run']}\n           {facts} · {where} · here: {entry['way']}".rstrip(" ·"))
        if entry["detail"]:
            print(f"           {entry['detail']}")
    where = os.environ.get("HANDSON_RECORDINGS", "docs/recordings")
    print(f"\n{len(entries) - len(bad)} fresh, {len(bad)} not fresh, in {where}")
    for edit in sources.harmless_edits().values():
        print(f"keys pass over an edit of {edit.name}: {edit.why}")
    return int(bool(check and bad))
