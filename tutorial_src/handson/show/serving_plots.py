"""Pictures of the serving lesson: when each request was answered, and throughput and latency against clients."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from handson.show import picture, style
from handson.show.conditions import RunLike, Runs, by_conditions, crowded
from handson.show.style import quantity

SERIAL, BATCHED = "one at a time", "batched"
# Hues are the ranks'. A server's line is told apart by tone, dash and marker.
LOOKS = {
    SERIAL: {"color": style.NEUTRAL, "linestyle": (0, (4, 2)), "marker": "s"},
    BATCHED: {"color": style.FOREGROUND, "marker": "o"},
}
LABELS = {SERIAL: SERIAL, BATCHED: "batched, tp 1"}
DIVIDED = (
    {"color": style.NEUTRAL, "marker": "^"},
    {"color": style.PALE, "marker": "D", "linewidth": 2.2},
)


def timeline(run: RunLike) -> picture.Picture:
    """Draw when each of some requests, sent at the same time, was answered: one at a time, and batched."""
    found = {name: [row for row in run.rows("request") if row["server"] == name] for name in (SERIAL, BATCHED)}
    ends = {name: max(row["ended_ms"] for row in rows) for name, rows in found.items()}
    with style.context():
        drawn, axes = picture.new(height=4.2, nrows=2, sharex=True)
        for ax, (name, rows) in zip(axes[:, 0], found.items(), strict=True):
            ordered = sorted(rows, key=lambda row: row["ended_ms"])
            before = 0.0
            for y, row in enumerate(ordered):
                start = before if name == SERIAL else row["began_ms"]
                ax.barh(y, row["ended_ms"] - row["began_ms"], left=row["began_ms"], height=0.7, color=style.PALE)
                ax.barh(y, row["ended_ms"] - start, left=start, height=0.7, color=style.NEUTRAL)
                where = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
                ax.annotate(f"{row['tokens']}", (row["ended_ms"], y), **where)
                before = row["ended_ms"]
            ax.invert_yaxis()
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
            ax.set_ylabel(f"{len(rows)} requests")
            ax.set_title(f"{name}: all answered after {quantity(ends[name], 'ms')}", fontsize=10.5)
            ax.grid(axis="x")
        axes[-1, 0].set_xlim(0, 1.06 * max(ends.values()))
        axes[-1, 0].set_xlabel("time since they were sent (ms); number: tokens of the answer")
        keys = [
            Line2D([], [], color=style.PALE, linewidth=7, label="waits for those before it"),
            Line2D([], [], color=style.NEUTRAL, linewidth=7, label="is worked on"),
        ]
        drawn.legend(handles=keys, loc="outside upper left", ncols=2, handlelength=1.2)
        count = len(found[SERIAL])
        alt = (
            f"{count} requests sent at once. One at a time, each waits for those before it, and the last is answered "
            f"after {quantity(ends[SERIAL], 'ms')}. Batched, all are worked on together, and the last is answered "
            f"after {quantity(ends[BATCHED], 'ms')}."
        )
        return picture.finish(drawn, alt)


def loads(runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """The loads of each server, by clients, over all runs given (which were made under the same conditions)."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs.values():
        for row in run.rows("load"):
            found.setdefault(row["server"], {})[row["clients"]] = row
    return {name: [rows[clients] for clients in sorted(rows)] for name, rows in found.items()}


def throughput(runs: Runs) -> picture.Picture:
    """Draw answers a second against clients, a line for each server, a panel for each kind of hardware."""
    words = []
    with style.context():
        groups = by_conditions(runs)
        drawn, axes = picture.new(height=3.4 * len(groups), nrows=len(groups))
        for ax, (title, group) in zip(axes[:, 0], groups, strict=True):
            for name, rows in loads(group).items():
                clients, rates = zip(*[(row["clients"], row["per_second"]) for row in rows], strict=True)
                turns = " (ranks take turns)" if any(crowded(r) for r in group.values() if _served(r, name)) else ""
                # Two points say nothing of what is between them, least of all on this axis.
                look = _look(name) | ({"linestyle": "none"} if len(rows) < 3 else {})
                ax.plot(clients, rates, label=LABELS.get(name, f"batched, {name}") + turns, **look)
                words.append(f"{name}{turns} {quantity(max(rates), 'answers/s')} at most on {title}")
            _clients_axis(ax, loads(group))
            ax.set_ylabel("answers a second")
            ax.set_ylim(0)
            ax.set_title(title, fontsize=10, color=style.MUTED)
            ax.legend(loc="upper left", handlelength=2.6)
        return picture.finish(drawn, f"Answers a second against clients: {'; '.join(words)}.")


def latency(run: RunLike) -> picture.Picture:
    """Draw latency percentiles against clients: a panel for each server of one run."""
    found, words = loads({"": run}), []
    tones = ((50, style.FOREGROUND, "o"), (95, style.NEUTRAL, "s"), (99, style.PALE, "D"))
    with style.context():
        widths = [len(rows) for rows in found.values()]
        drawn, axes = picture.new(height=3.4, ncols=len(found), sharey=True, width_ratios=widths)
        for ax, (name, rows) in zip(axes[0], found.items(), strict=True):
            clients = [row["clients"] for row in rows]
            for percent, colour, marker in tones:
                times = [row[f"p{percent}_ms"] / 1e3 for row in rows]
                ax.plot(clients, times, color=colour, marker=marker, label=f"p{percent}", linewidth=2)
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: quantity(y, "s")))
            ax.yaxis.set_minor_locator(NullLocator())
            ax.grid(axis="y")
            _clients_axis(ax, {name: rows})
            ax.set_title(name, fontsize=10.5)
            last = rows[-1]
            words.append(
                f"{name} with {last['clients']} clients: half within {quantity(last['p50_ms'], 'ms')}, "
                f"99 % within {quantity(last['p99_ms'], 'ms')}"
            )
        axes[0, 0].set_ylabel("latency")
        drawn.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
        return picture.finish(drawn, f"Latency against clients: {'; '.join(words)}.")


def _served(run: RunLike, name: str) -> bool:
    return any(row["server"] == name for row in run.rows("load"))


def _look(name: str) -> dict[str, Any]:
    divided = {"tp 2": DIVIDED[0], "tp 4": DIVIDED[1]}
    return {"markersize": 5.5, **(LOOKS.get(name) or divided.get(name, DIVIDED[0]))}


def _clients_axis(ax: Axes, found: dict[str, list[dict[str, Any]]]) -> None:
    counts = sorted({row["clients"] for rows in found.values() for row in rows})
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(counts))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(counts[0] / 1.25, counts[-1] * 1.25)
    ax.set_xlabel("clients")
