"""How fast each way of sharing a batch goes at each length, and where its time goes: what speed.py measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from handson.show import picture, style
from handson.show.conditions import crowded
from handson.show.sequence_length import MARKERS, grouped, lengths_axis, round_numbers
from handson.show.style import quantity, relative
from handson.show.tables import Table, lines


def speed_rows(run: Any) -> dict[str, dict[int, dict[str, Any]]]:
    """Return {way: {length: its row}}."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in run.rows("speed", rank=0):
        found.setdefault(row["way"], {})[row["length"]] = row
    return found


def speed_plot(runs: Iterable[Any]) -> picture.Picture:
    """Draw tokens a second against length: one panel for each number of ranks, one rank's plain attention in each."""
    panels = [(title, ranks, run, group) for title, group in grouped(runs) for ranks, run in group.items() if ranks > 1]
    words = []
    with style.context():
        drawn, axes = picture.new(height=3.1 * len(panels) + 0.3, nrows=len(panels))
        for ax, (title, ranks, run, group) in zip(axes[:, 0], panels, strict=True):
            ways = speed_rows(run)
            if 1 in group:
                plain = speed_rows(group[1]).get("plain", {})
                _line(ax, "one rank, plain", plain, style.PALE, "P", 5)
            for index, (name, rows) in enumerate(ways.items()):
                _line(ax, name, rows, style.FOREGROUND if index % 2 else style.NEUTRAL, MARKERS[name], 1.6)
                fast = {length: row["tokens_per_second"] for length, row in rows.items() if row["median_ms"]}
                words.append(f"{ranks} ranks, {name}: " + ", ".join(f"{quantity(v)} at {k:,}" for k, v in fast.items()))
            lengths = sorted({length for rows in ways.values() for length in rows})
            ax.set(xscale="log", yscale="log")
            lengths_axis(ax.xaxis, lengths, every=True)
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: quantity(y)))
            rates = [r["tokens_per_second"] for rows in ways.values() for r in rows.values() if r["median_ms"]]
            low, high = min(rates) / 1.6, max(rates) * 1.6
            ax.yaxis.set_major_locator(FixedLocator(round_numbers(low, high)))
            ax.set_ylim(low, high)
            ax.set_ylabel("tokens a second")
            turns = ", taking turns on the cores" if crowded(run) else ""
            ax.set_title(f"{ranks} ranks{turns}, {title}", fontsize=10, color=style.MUTED)
            ax.grid(axis="y")
        axes[-1, 0].set_xlabel("tokens in a sequence")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside upper left", ncols=3, handlelength=1.8, columnspacing=1.2)
        return picture.finish(drawn, f"Tokens a second against the length of a sequence. {'; '.join(words)}.")


def _line(ax: Axes, name: str, rows: Mapping[int, Mapping[str, Any]], colour: str, marker: str, width: float) -> None:
    kept = [(length, row["tokens_per_second"]) for length, row in rows.items() if row["median_ms"]]
    if kept:
        ax.plot(*zip(*kept, strict=True), color=colour, marker=marker, markersize=6, linewidth=width, label=name)


def speed_table(runs: Iterable[Any], *, caption: str) -> Table:
    """Step time of every way, side by side for each length and number of ranks, and how many times one rank's speed."""
    groups = grouped(runs)
    ways = list(dict.fromkeys(way for _, group in groups for run in group.values() for way in speed_rows(run)))
    body = []
    for title, group in groups:
        alone = speed_rows(group[1]).get("plain", {}) if 1 in group else {}
        for ranks, run in group.items():
            found = speed_rows(run)
            for length in sorted({length for rows in found.values() for length in rows}):
                cells = [_time(found.get(way, {}).get(length), alone.get(length, {}), ranks) for way in ways]
                body.append([f"{ranks} rank{'s' * (ranks > 1)}, {length:,} tokens", *cells, title])
    notes = [
        "× is how many times the speed of one rank with plain attention. Where a step would not fit, there stands what "
        "it would keep for the backward pass."
    ]
    return Table(["ranks, length", *ways, "where"], body, caption, notes)


def _time(row: Mapping[str, Any] | None, alone: Mapping[str, Any], ranks: int) -> Any:
    if row is None:
        return "—"
    if row["median_ms"] is None:
        return lines("keeps", quantity(row["kept_bytes"], "B"))
    one = alone.get("median_ms")
    against = relative(one, row["median_ms"]) if one and ranks > 1 else ""
    return lines(quantity(row["median_ms"], "ms"), against)


def split_table(runs: Iterable[Any], *, ranks: int = 2, caption: str) -> Table:
    """Where the time of a step goes: computing in the proportion of one rank's speed, sending at the links', the rest.

    Of the first conditions under which one rank and `ranks` were timed, at the longest length that one rank bears.
    Computing is expected at the operations per second that one rank's plain attention reaches at this length; sending
    at what the links gave for one large message.
    """
    title, group = next((title, group) for title, group in grouped(runs) if {1, ranks} <= group.keys())
    plain = max((r for r in speed_rows(group[1])["plain"].values() if r["median_ms"]), key=lambda r: r["length"])
    length = plain["length"]
    rate = plain["flops"] / plain["median_ms"]
    (link,) = group[ranks].rows("link", rank=0)
    body = []
    for way, rows in speed_rows(group[ranks]).items():
        row = rows.get(length, {})
        if not row.get("median_ms"):
            continue
        computing = row["flops"] / rate
        sending = 0.0
        for part in row["rows"]:
            over = link["ring"] if part["collective"] == "send" else link["all_reduce"]
            sending += 1000 * part["wire_bytes"] / over
        rest = row["median_ms"] - computing - sending
        times = [
            quantity(value, "ms") if value >= 0 else f"−{quantity(-value, 'ms')}"
            for value in (computing, sending, rest)
        ]
        body.append(
            [way, quantity(row["median_ms"], "ms"), *times, quantity(row["wire_bytes"], "B"), quantity(row["flops"])]
        )
    columns = ["way", "step time", "computing, expected", "sending, expected", "the rest", "sent", "operations"]
    notes = [
        f"Computing: this way's operations on a rank, at the {quantity(rate * 1000)} operations per second of one rank "
        f"with plain attention. Sending: the bytes of a step at {quantity(link['ring'], 'B')}/s to the neighbour and "
        f"{quantity(link['all_reduce'], 'B')}/s in an all-reduce, as measured with messages of "
        f"{quantity(link['message_bytes'], 'B')}. The rest: smaller matrices, slower kernels, starting kernels and "
        "messages, waiting; it is below nought where sending hid behind computing, or smaller pieces suit the caches."
    ]
    return Table(columns, body, f"{caption}: {ranks} ranks, {length:,} tokens, {title}", notes)
