"""Layers that repeat, as one row: where a plan treats all blocks alike, they differ in nothing but their number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

TENSORS = ("input", "weight", "output")


def letters(sharding: Sequence[str]) -> str:
    """The solver's letters: ["S01", "R"] is "S01R"."""
    return "".join(sharding)


def folded(nodes: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Layers that repeat, as one entry: over all stages and blocks where all agree, else over a stage's blocks.

    Returns:
        (name, its nodes), in the order of the graph; `layer2_*_conv1` stands for the blocks of stage 2,
        `layer*_*_conv1` for all blocks. Nodes that disagree keep their own names.
    """
    places = _places(nodes)
    keys = [_alike(node) for node in nodes]
    levels: list[dict[str, list[int]]] = [{}, {}]
    for index, names in enumerate(places):
        for level, name in zip(levels, names, strict=True):
            level.setdefault(name, []).append(index)
    found: dict[str, list[Row]] = {}
    for index, node in enumerate(nodes):
        label = str(node["name"])
        for level, name in zip(levels, places[index], strict=True):
            members = level[name]
            if len(members) > 1 and len({keys[member] for member in members}) == 1:
                label = name
                break
        found.setdefault(label, []).append(node)
    return list(found.items())


_BLOCK = re.compile(r"(layer)(\d+)_(\d+)(?=_)|(h|blocks?|layers?)()_(\d+)(?=_)")


def _places(nodes: Sequence[Row]) -> list[tuple[str, str]]:
    """For each node its name with stage and block, then with the block alone, replaced by stars.

    A function has no module to be named after: `add_3` belongs to the block of the module before it, and is told
    from others of its kind there by its turn.
    """
    found, inside, turns = [], None, {}
    for node in nodes:
        name = str(node["name"])
        match, function = _BLOCK.match(name), _NUMBERED.fullmatch(name)
        if match:
            if inside is None or match.group() != inside.group():
                turns = {}
            inside, rest = match, name[match.end() + 1 :]
        elif inside and function and function[1] == node["op"]:
            turns[function[1]] = turns.get(function[1], -1) + 1
            rest = f"{function[1]}{f'_{turns[function[1]]}' if turns[function[1]] else ''}"
        else:
            # The stem and the head are outside every block, and so is what follows them.
            inside = None
            found.append((name, name))
            continue
        stage, number = (inside[1], inside[2]) if inside[1] else (inside[4], "")
        found.append((f"{stage}{'*' if number else ''}_*_{rest}", f"{stage}{number}_*_{rest}"))
    return found


_NUMBERED = re.compile(r"([a-z]+(?:_[a-z]+)*?)(?:_\d+)?")


def _alike(node: Row) -> tuple[Any, ...]:
    """What must be equal in layers that share a row."""
    cuts = tuple(letters((node.get(tensor) or {"sharding": ()})["sharding"]) for tensor in TENSORS)
    return node["op"], plain(node["strategy"]), *cuts


def plain(strategy: str) -> str:
    """A strategy's name without the number by which upstream tells equal elementwise ones apart."""
    return re.sub(r"(?<=[\]D)])_\d+$", "", strategy)
