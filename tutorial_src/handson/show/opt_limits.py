"""The largest OPT that trains within a memory cap, and a training that was killed: pictures and tables.

Rows are those of tutorial_src/opt/largest.py (search, trial, largest) and kill_and_resume.py (resume_loss, resume).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator

from handson.show import picture, style
from handson.show.conditions import by_conditions, crowded
from handson.show.run_tables import formula_table
from handson.show.style import quantity
from handson.show.tables import Table, lines, soft

# Strategies are told apart by tone, what they put elsewhere by hatching: hues are the ranks'.
LOOKS = {
    "ddp": (style.FOREGROUND, ""),
    "zero1": (style.NEUTRAL, ""),
    "zero2": (style.PALE, ""),
    "gemini-static": (style.BACKGROUND, ""),
    "zero2-offload": (style.PALE, "////"),
    "gemini-auto": (style.BACKGROUND, "...."),
    "gemini-offload": (style.BACKGROUND, "////"),
}
EDGE = {"edgecolor": style.FOREGROUND, "linewidth": 0.7}
Found = dict[str, dict[str, str | None]]  # {cap or ranks, in words: {strategy: the largest size}}


def by_cap(run: Any) -> Found:
    """Return {cap: {strategy: the largest size that trains}}."""
    unit, found = run.value("search", "unit"), {}
    for row in run.rows("largest", rank=0):
        found.setdefault(f"{row['cap']:g} {unit}", {})[row["strategy"]] = row["size"]
    return found


def by_ranks(runs: Iterable[Any], *, cap: float) -> Found:
    """Return {ranks: {strategy: the largest size that trains under this cap}}."""
    return {
        f"{run.ranks} rank{'s' * (run.ranks > 1)}": {
            row["strategy"]: row["size"] for row in run.rows("largest", rank=0) if row["cap"] == cap
        }
        for run in runs
    }


def largest_bars(found: Found, runs: Iterable[Any], *, title: str) -> picture.Picture:
    """Draw the largest size of each strategy, in groups: one for each cap, or for each number of ranks."""
    count = sizes(runs)
    unfinished = {pair for run in runs for pair in lower_bounds(run)}
    names = [name for name in LOOKS if any(name in group for group in found.values())]
    shown = [name for name in count if count[name] <= max(map(count.get, _found(found)))]
    words = []
    with style.context():
        drawn, axes = picture.new(height=3.9)
        ax = axes[0, 0]
        wide = 0.84 / len(names)
        for index, (group, best) in enumerate(found.items()):
            for number, name in enumerate(names):
                at = index + (number - (len(names) - 1) / 2) * wide
                size = best.get(name)
                if size:
                    face, hatch = LOOKS[name]
                    ax.bar(at, count[size], width=0.88 * wide, facecolor=face, hatch=hatch, **EDGE)
                    if (group, name) in unfinished:
                        ax.annotate("↑", (at, count[size]), (0, 1), textcoords="offset points", ha="center")
                elif name in best:
                    ax.annotate("none", (at, 0), (0, 3), xycoords=("data", "axes fraction"),
                                textcoords="offset points", ha="center", rotation=90, fontsize=9.5)  # fmt: skip
            more = {name: " or larger" for name in names if (group, name) in unfinished}
            said = [f"{name} {best[name] or 'none'}{more.get(name, '')}" for name in names if name in best]
            words.append(f"{group}: {', '.join(said)}")
        ax.set_yscale("log")
        ax.set_ylim(min(count[name] for name in shown) / 2, 1.5 * max(count[name] for name in shown))
        ax.yaxis.set_major_locator(FixedLocator([count[name] for name in shown]))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_yticklabels(shown)
        ax.set_xticks(range(len(found)), list(found))
        ax.tick_params(axis="x", length=0)
        ax.set_ylabel("largest OPT that trains")
        ax.grid(axis="y")
        ax.set_title(title, fontsize=10, color=style.MUTED)
        keys = [Patch(facecolor=LOOKS[name][0], hatch=LOOKS[name][1], label=name, **EDGE) for name in names]
        columns = len(names) if len(names) <= 4 else 3
        drawn.legend(handles=keys, loc="outside upper left", ncols=columns, handlelength=1.5, columnspacing=1.2)
        return picture.finish(drawn, f"The largest OPT that trains, {title}. {'; '.join(words)}.")


def sizes(runs: Iterable[Any]) -> dict[str, int]:
    """Return {size: parameters} of everything that was tried, from small to large."""
    held = {row["size"]: row["parameters"] for run in runs for row in run.rows("trial", rank=0)}
    return dict(sorted(held.items(), key=lambda item: item[1]))


def lower_bounds(run: Any) -> set[tuple[str, str]]:
    """Return (cap, strategy) of each search that ended at its time limit, so that a larger size might train."""
    return {
        (f"{row['cap']:g} {run.value('search', 'unit')}", row["strategy"])
        for row in run.rows("trial", rank=0)
        if row.get("stopped") == "time limit"
    }


def against_ddp(run: Any) -> str:
    """Return the largest size under the smallest and the largest cap, in words, and how many times that of ddp."""
    count, caps, open_ended = sizes([run]), by_cap(run), lower_bounds(run)
    words = []
    for cap in dict.fromkeys((next(iter(caps)), list(caps)[-1])):
        best = max(filter(None, caps[cap].values()), key=count.__getitem__, default=None)
        most = [name for name, size in caps[cap].items() if size == best]
        bound = "at least " if any((cap, name) in open_ended for name in most) else ""
        words.append(f"{bound}{best} in {cap}, {style.relative(count.get(best), count.get(caps[cap].get('ddp')))} ddp")
    return "; ".join(words)


def _found(found: Found) -> list[str]:
    return [size for group in found.values() for size in group.values() if size]


def largest_table(run: Any, *, caption: str) -> Table:
    """For each strategy and cap: the largest size, its tokens a second, and what became of the next one."""
    found, unit = by_cap(run), run.value("search", "unit")
    trials = run.rows("trial", rank=0)
    names = list(dict.fromkeys(row["strategy"] for row in trials))
    body, reasons = [], {}
    for name in names:
        cells: list[Any] = [name]
        for cap, best in found.items():
            size = best.get(name)
            mine = [row for row in trials if row["strategy"] == name]
            trained = next((row for row in mine if row["size"] == size and row["verdict"] == "trains"), None)
            speed = quantity(trained["tokens_per_second"], "tokens/s") if trained else ""
            under = [row for row in mine if f"{row['cap']:g} {unit}" == cap and row["verdict"] != "trains"]
            cells.append(
                lines(size or "none", soft(speed), *[soft(f"{row['size']}: {row['verdict']}") for row in under])
            )
            why_not = (row for row in under if row["verdict"] == "not tried")
            reasons |= {(f"{name}, {row['size']}", row["reason"]): None for row in why_not}
        body.append(cells)
    notes = [f"Not tried, {what}: it takes {why}." for what, why in reasons]
    return Table(["strategy", *found], body, caption, notes)


def ranks_table(runs: Iterable[Any], *, caption: str) -> Table:
    """For each run and strategy: the size, its peak beside the formula's, and tokens a second; each run once.

    Where ranks take turns on fewer cores, a speed would say nothing and is left out.
    """
    body, notes = [], []
    for title, group in by_conditions({f"{run.preset} {run.ranks}": run for run in runs}):
        for run in group.values():
            unit = run.value("search", "unit")
            task = f"{run.value('search', 'batch')} × {run.value('search', 'sequence')} tokens a rank"
            notes.append(f"{title}: {task} in a step.")
            for best in run.rows("largest", rank=0):
                row = _trained(run, best["strategy"], best["size"])
                body.append(
                    [
                        best["strategy"],
                        title,
                        run.ranks,
                        f"{best['cap']:g} {unit}",
                        lines(best["size"] or "none", soft(quantity(row["parameters"])) if row else ""),
                        quantity(row["expected_bytes"], "B") if row else "—",
                        quantity(row["peak_bytes"], "B") if row else "—",
                        quantity(row["tokens_per_second"], "tokens/s") if row and not crowded(run) else "—",
                    ]
                )
    columns = ["strategy", "where", "ranks", "cap", "largest", "by formula", "measured", "speed"]
    return Table(columns, body, caption, list(dict.fromkeys(notes)))


def _trained(run: Any, strategy: str, size: str | None) -> dict[str, Any] | None:
    rows = [row for row in run.rows("trial", rank=0) if row["strategy"] == strategy and row["verdict"] == "trains"]
    return next((row for row in rows if row["size"] == size), None)


PER_PARAMETER = {"ddp": "16 N", "gemini-static": "14 N", "zero2-offload": "4 N", "gemini-offload": "chunks"}


def peaks_table(run: Any, *, caption: str) -> Table:
    """The peak of each size that trained, beside the formula; each strategy's sizes from small to large."""
    rows, seen = [], set()
    for row in run.rows("trial", rank=0):
        key = (row["strategy"], row["size"])
        if row["verdict"] != "trains" or key in seen or row["strategy"] == "gemini-auto":
            continue  # gemini-auto takes what it is given
        seen.add(key)
        rows.append(
            {
                "what": f"{row['strategy']}, {row['size']}",
                "formula": f"{PER_PARAMETER.get(row['strategy'], '')} + tokens",
                "unit": "B",
                "expected": row["expected_bytes"],
                "counted": row["peak_bytes"],
            }
        )
    return formula_table(rows, caption=caption)


def resume_plot(run: Any) -> picture.Picture:
    """Draw the losses of the training that ran through, of the one that was killed, and of the one that went on."""
    about = run.rows("resume", rank=0)[-1]
    curves = {phase: {} for phase in ("whole", "killed", "resumed")}
    for row in run.rows("resume_loss", rank=0):
        curves[row["phase"]][row["step"]] = row["loss"]
    killed, went_on = about["killed_after"], about["resumed_after"]
    with style.context():
        drawn, axes = picture.new(height=3.4)
        ax = axes[0, 0]
        whole, first, second = curves.values()
        ax.plot(list(whole), list(whole.values()), color=style.PALE, lw=5, solid_capstyle="round", label="never killed")
        look = {"linestyle": "none", "color": style.FOREGROUND}
        ax.plot(list(first), list(first.values()), marker="o", ms=5, label=f"killed after step {killed}", **look)
        label = f"resumed after step {went_on}"
        ax.plot(list(second), list(second.values()), marker="s", ms=8.5, mfc="none", label=label, **look)
        ax.axvline(killed, color=style.FAILURE, lw=1.2, linestyle=(0, (4, 3)))
        ax.axvline(went_on, color=style.MUTED, lw=1.2, linestyle=(0, (1, 2)))
        for at, words, colour in ((killed, "SIGKILL", style.FAILURE), (went_on, "checkpoint", style.MUTED)):
            ax.annotate(words, (at, 0.98), (-4, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
                        ha="right", va="top", color=colour, rotation=90, fontsize=10)  # fmt: skip
        ax.set(xlabel="step", ylabel="loss (nats a token)")
        ax.grid(axis="y")
        drawn.legend(loc="outside upper left", ncols=3, handlelength=1.5, columnspacing=1.2)
        alt = (
            f"Losses of {len(whole)} steps. Killed after step {killed}, resumed after step {went_on}; the largest "
            f"difference from the training that was never killed is {style.number(about['apart'])}"
        )
        return picture.finish(drawn, alt + ".")


def resume_table(runs: Mapping[str, Any], *, caption: str) -> Table:
    """For each run: where it was killed, where it went on, and how far the losses and the exported model are off."""
    body = []
    for label, run in runs.items():
        row = run.rows("resume", rank=0)[-1]
        body.append(
            [
                label,
                run.ranks,
                row["precision"],
                row["killed_after"],
                row["resumed_after"],
                style.number(float(row["apart"])),
                style.number(float(row["logits_apart"])),
            ]
        )
    columns = ["strategy", "ranks", "precision", "killed after", "resumed after", "loss difference", "logit difference"]
    return Table(columns, body, caption)


def files_table(run: Any, *, caption: str) -> Table:
    """The files of an exported model."""
    held = run.rows("resume", rank=0)[-1]["files"]
    return Table(["file", "size"], [[name, quantity(size, "B")] for name, size in held.items()], caption)
