"""A training script's configuration: a flat Python file of names, replaced by KEY=value, refused in one sentence.

Standard library alone, so that a mistake is answered before the heavy modules are imported.
"""

from __future__ import annotations

import ast
import runpy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

from handson.worker import refuse


@dataclass(frozen=True)
class ConfigFile:
    """What a script's configuration may say.

    `settings` is the dataclass whose fields, in capitals, are the names. Whole numbers are 1 or more and other numbers
    0 or more, unless `least` says else; `choices` lists the values of a name that has few; `example` is a KEY=value
    for the error's text; `folder` is where the tutorial's own file is.
    """

    settings: type
    folder: Path
    example: str
    least: Mapping[str, float] = field(default_factory=dict)
    choices: Mapping[str, tuple] = field(default_factory=dict)

    def kinds(self) -> dict[str, type]:
        """The type of each name; `float | None` may be None."""
        hints = get_type_hints(self.settings)
        return {entry.name.upper(): hints[entry.name] for entry in fields(self.settings)}

    def read(self, config: str, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The file's names and those of its GPU preset, both with the command line's in their place.

        Raises:
            SystemExit: with code 2, after one sentence that says what is wrong and what to do.
        """
        path = next((p for p in (Path(config), self.folder / config, self.folder.parent / config) if p.is_file()), None)
        if path is None:
            refuse(f"there is no configuration file {config}; the tutorial's own is --config config.py")
        try:
            found = runpy.run_path(str(path)).items()
        except Exception as error:
            refuse(f"{config} cannot be read: {type(error).__name__}: {error}")
        names = {key: value for key, value in found if not key.startswith("_") and not isinstance(value, ModuleType)}
        gpu = names.pop("GPU", {})
        if not isinstance(gpu, dict):
            refuse(f"{config} says GPU={gpu!r}, which must be a dict of the names that differ on a GPU")
        for source, values in ((config, names), (f"GPU in {config}", gpu), ("the command line", overrides)):
            for key, value in values.items():
                self._check(source, key, value)
        if missing := sorted(self.kinds().keys() - names.keys()):
            refuse(f"{config} does not say {', '.join(missing)}; copy the line from the tutorial's config.py")
        return names | dict(overrides), gpu | dict(overrides)

    def assignments(self, texts: list[str]) -> dict[str, Any]:
        """KEY=value of the command line; the value is read as Python where it is Python, else as a word."""
        found = {}
        for text in texts:
            key, equals, value = text.partition("=")
            if not equals:
                refuse(f"{text} is no setting; write KEY=value, for example {self.example}")
            try:
                found[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                found[key] = value
        return found

    def make(self, names: Mapping[str, Any]) -> Any:
        """The dataclass of these names."""
        return self.settings(**{key.lower(): value for key, value in names.items()})

    def _check(self, source: str, key: str, value: Any) -> None:
        kinds = self.kinds()
        if key not in kinds:
            near = get_close_matches(key, kinds, n=1)
            hint = f"did you mean {near[0]}?" if near else "the tutorial's config.py names all that there is"
            refuse(f"{source} says {key}, which is no setting; {hint}")
        if key in self.choices:
            if value not in self.choices[key]:
                refuse(f"{source} says {key}={value}, which is not known; use {', '.join(map(str, self.choices[key]))}")
            return
        allowed = get_args(kinds[key]) or (kinds[key],)
        if value is None and type(None) in allowed:
            return
        kind = next(option for option in allowed if option is not type(None))
        numbers = (int, float) if kind is float else kind
        if not isinstance(value, numbers) or (isinstance(value, bool) and kind is not bool):
            refuse(f"{source} says {key}={value!r}, which is not of type {kind.__name__}")
        least = self.least.get(key, 1 if kind is int else 0)
        if kind in (int, float) and value < least:
            refuse(f"{source} says {key}={value}, which must be {least} or more")
