"""Where runs live: recordings under docs/recordings/, this host's own runs under the build folder.

One JSON file a run, one line a row, so that a diff shows which number changed. A digest over the content tells a
truncated or edited file from a whole one. Standard library alone: `handson status` needs no environment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from handson import provenance, sources
from handson.run import Run

FORMAT = 1
POLICIES = ("auto", "live", "recorded")


class StoreError(RuntimeError):
    """A recording cannot be used, or the policy is unknown; the text says which and what to do."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a lesson asks for, before it is decided how to get it."""

    script: Path
    argv: tuple[str, ...]
    ranks: int
    preset: str  # gpu | laptop
    without: tuple[str, ...] = ()  # repairs left out, to show the fault

    @classmethod
    def again(cls, made: Run | dict[str, Any]) -> Request:
        """What was asked for when a run, or a lesson's note of one, was made.

        Raises:
            FileNotFoundError: when its script is not there any more.
        """
        had = made if isinstance(made, dict) else vars(made)
        script = sources.find_script(had["script"])
        return cls(script, tuple(had["argv"]), had["ranks"], had["preset"], tuple(had["without"]))

    @property
    def name(self) -> str:
        return sources.name_of(self.script)

    @property
    def files(self) -> dict[str, str]:
        return sources.files_of(self.script, self.argv)

    @property
    def key(self) -> str:
        return sources.key_of(self.files, self.argv, self.ranks, self.preset, self.without)

    @property
    def file(self) -> Path:
        """Where this request's run is kept, relative to a store's root: readable, and unique by a short hash."""
        words = re.sub(r"[^A-Za-z0-9.=]+", "-", " ".join(a for a in self.argv if not a.startswith("-"))).strip("-")
        unique = hashlib.sha256(json.dumps([self.argv, self.ranks, self.preset, self.without]).encode()).hexdigest()[:6]
        stem = "-".join(filter(None, [self.script.stem, words[:80].strip("-"), f"x{self.ranks}", self.preset, unique]))
        return Path(self.name).parent / f"{stem}.json"


def policy() -> str:
    """How runs are obtained: HANDSON_RUNS, default auto.

    Raises:
        StoreError: when it is none of auto, live, recorded.
    """
    asked = os.environ.get("HANDSON_RUNS") or "auto"
    if asked not in POLICIES:
        raise StoreError(f"HANDSON_RUNS={asked} is no policy: use {', '.join(POLICIES)}")
    return asked


def recordings() -> Path | None:
    """The folder of recordings: the checkout's, or HANDSON_RECORDINGS; none for an installed wheel."""
    if "HANDSON_RECORDINGS" in os.environ:
        return Path(os.environ["HANDSON_RECORDINGS"])
    return sources.CHECKOUT / "docs" / "recordings" if sources.CHECKOUT else None


def build_folder() -> Path:
    """Where this host's own runs are kept: HANDSON_BUILD, else the checkout's build folder, else .handson here."""
    if "HANDSON_BUILD" in os.environ:
        return Path(os.environ["HANDSON_BUILD"])
    return sources.CHECKOUT / "build" / "handson" if sources.CHECKOUT else Path.cwd() / ".handson"


def _digest(content: dict[str, Any]) -> str:
    held = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def dump(run: Run, extra: dict[str, Any] | None = None) -> str:
    """The run as text: stable order, one line for each logged line and each row."""
    content = {"format": FORMAT} | dataclasses.asdict(run) | (extra or {})
    del content["way"], content["note"]
    content["error"] = run.error and sources.without_folders(run.error)
    content["digest"] = _digest(content)
    return as_text(content, rows=("log", "data"))


def as_text(content: dict[str, Any], *, rows: tuple[str, ...]) -> str:
    """A JSON document in stable order: a line for each entry of a dictionary, and of each list named in `rows`."""
    lines = []
    for name, value in content.items():
        if name in rows and value:
            body = ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in value)
            lines.append(f' "{name}": [\n{body}\n ]')
        elif isinstance(value, dict) and value:
            body = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items())
            lines.append(f' "{name}": {{\n{body}\n }}')
        else:
            lines.append(f' "{name}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write(path: Path, text: str) -> None:
    """Put a whole file in place or none: a reader never sees half of it, and two writers do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as file:
        partial = Path(file.name)
        try:
            file.write(text)
            file.flush()  # a full disk may show itself only here
        except OSError:
            partial.unlink()
            raise
    partial.chmod(0o644)
    partial.replace(path)


def load(path: Path) -> tuple[Run, dict[str, Any]]:
    """Read a run back, with what else its file holds.

    Raises:
        StoreError: naming the file, when it is truncated, edited or of another format.
    """
    shown = path.name if sources.CHECKOUT is None else os.path.relpath(path, sources.CHECKOUT)
    remedy = "restore it from git, or make it again with `python -m handson record`"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (ValueError, UnicodeDecodeError) as error:
        raise StoreError(f"the recording {shown} is truncated or corrupt ({error}): {remedy}") from None
    if content.get("format") != FORMAT:
        raise StoreError(f"the recording {shown} has format {content.get('format')}, not {FORMAT}: {remedy}")
    if content.get("digest") != _digest(content):
        raise StoreError(f"the recording {shown} does not match its own digest, it was changed or cut: {remedy}")
    names = {field.name for field in dataclasses.fields(Run)}
    try:
        run = Run(**{name: value for name, value in content.items() if name in names})
    except TypeError as error:
        raise StoreError(f"the recording {shown} is incomplete ({error}): {remedy}") from None
    return run, {name: value for name, value in content.items() if name not in names}


def key_now(made: Run | dict[str, Any]) -> str | None:
    """The key that the same request has today; none where its script is gone or cannot be read."""
    try:
        return Request.again(made).key
    except (FileNotFoundError, SyntaxError):
        return None


def changed_files(run: Run, request: Request) -> list[str]:
    """Which files differ between the code that made `run` and the code here; empty when the run is fresh."""
    now = request.files
    return sorted(name for name in {*now, *run.files} if now.get(name) != run.files.get(name))


def recorded(request: Request) -> tuple[Run | None, str]:
    """The fresh recording of a request, or none and the reason in one sentence.

    Raises:
        StoreError: when the recording is there but cannot be read.
    """
    root = recordings()
    if root is None or not (root / request.file).is_file():
        return None, f"there is no recording of `{_title(request)}` at the {request.preset} preset"
    run, _ = load(root / request.file)
    changed = changed_files(run, request)
    if changed:
        made = run.provenance
        return None, (
            f"the recording of `{_title(request)}` on {made['hardware']} of {made['date'][:10]} is stale: "
            f"{', '.join(changed)} changed since"
        )
    run.way = "recorded"
    return run, ""


def _title(request: Request) -> str:
    return " ".join([request.name, *request.argv]) + f" on {request.ranks} rank{'s' * (request.ranks != 1)}"


def cached(request: Request) -> Run | None:
    """This host's own run of exactly this request, if there is one; a damaged cache file counts as none."""
    path = build_folder() / "runs" / request.file
    if not path.is_file():
        return None
    try:
        run, extra = load(path)
    except StoreError:
        return None
    if run.key != request.key or extra.get("host") != provenance.host_fingerprint():
        return None
    run.way = "cached"
    return run


def seconds_before(request: Request) -> float | None:
    """How long this request took when it was last run here, else where it was recorded, whatever its code was then."""
    for root in (build_folder() / "runs", recordings()):
        if root is not None and (root / request.file).is_file():
            with contextlib.suppress(StoreError):
                return load(root / request.file)[0].seconds
    return None


def keep(run: Run, request: Request) -> None:
    """Cache a live run under the build folder."""
    text = dump(run, {"host": provenance.host_fingerprint()})
    write(build_folder() / "runs" / request.file, text)
