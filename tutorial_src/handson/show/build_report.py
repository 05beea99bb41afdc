"""How a build used its devices: a lane for each device over the build's time, and what that adds up to.

Lessons have numbers, the same in the picture and in the table, in the order of the names that a caller gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from handson.jobs import Build, length
from handson.leases import CPU
from handson.show import picture, style
from handson.show.tables import Cell, Table, cell, lines, soft

Names = Mapping[str, object]  # of lessons: what to show for `topic/plot_name`, in the order of reading
HUES = (0, 1, 2, 3, 4, 6)  # of the colours that everybody can tell apart, those that show on a page and on a track
BAR, ABOVE = 0.56, 0.44  # a lane is a bar, with the lessons' numbers above it
LABEL = 0.042  # of the picture's time axis: the room that a number of two digits takes
MINUTES = 300  # seconds from which minutes read better


def timeline(build: Build, names: Names | None = None, topics: Mapping[str, str] | None = None) -> picture.Picture:
    """Draw when each device served a job, a colour for each topic and a number for each lesson; say how idle it was.

    Args:
        build: at least one job.
        names: the lessons in the order of their numbers; by their first job where none are given.
        topics: what a topic's folder is called.
    """
    numbers = {lesson: number for number, lesson in enumerate(lessons(build, names), 1)}
    held = any(build.held_back(device) for device in build.devices)
    colours = _colours(numbers)
    with style.context():
        keys = [Patch(facecolor=colour, label=(topics or {}).get(topic) or topic.replace("_", " "))
                for topic, colour in colours.items()]  # fmt: skip
        keys.append(Patch(facecolor=style.GRID, label="idle"))
        if held:
            keys.append(Patch(facecolor=style.GRID, edgecolor=style.MUTED, hatch="/////", linewidth=0,
                              label="idle although a job waited"))  # fmt: skip
        drawn, axes = picture.new(height=0.62 + 0.22 * -(-len(keys) // 2) + 0.52 * len(build.devices))
        ax = axes[0, 0]
        for lane, device in enumerate(build.devices):
            _lane(ax, lane, build, device, numbers, colours)
        ax.set(xlim=(0, build.seconds), ylim=(len(build.devices) - 1 + BAR / 2 + 0.06, -BAR / 2 - ABOVE))
        ax.set_yticks(range(len(build.devices)), [f"{_name(d)}\n{_idle(build, d)} idle" for d in build.devices])
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        _time_axis(ax, build)
        drawn.legend(handles=keys, loc="outside upper left", ncols=2, handlelength=1.2, columnspacing=1.4)
        return picture.finish(drawn, _words(build))


def _lane(
    ax: Axes, lane: int, build: Build, device: str, numbers: Mapping[str, int], colours: Mapping[str, str]
) -> None:
    """Draw one device's jobs on a track, and above them which lessons they belong to."""
    top = lane - BAR / 2
    ax.add_patch(Rectangle((0, top), build.seconds, BAR, facecolor=style.GRID, linewidth=0))
    for start, end in build.held_back(device):
        where = {"xy": (start - build.began, top), "width": end - start, "height": BAR}
        ax.add_patch(Rectangle(**where, fill=False, hatch="/////", edgecolor=style.MUTED, linewidth=0))
    own = [job for job in build.jobs if device in job["devices"]]
    for job in own:
        lesson = lesson_of(job)
        # Lessons of one topic, one after the other, are told apart by their shade too.
        look = {"facecolor": colours[_topic(lesson)], "alpha": 1.0 if numbers[lesson] % 2 else 0.62}
        corner, width = (job["began"] - build.began, top), job["ended"] - job["began"]
        ax.add_patch(Rectangle(corner, width, BAR, edgecolor=style.BACKGROUND, linewidth=0.3, **look))
    for start, end, lesson in _labelled(own, build.seconds):
        a, b = start - build.began, end - build.began
        ax.plot([a, b], [top - 0.08] * 2, color=style.MUTED, linewidth=1, solid_capstyle="butt")
        ax.text((a + b) / 2, top - 0.12, str(numbers[lesson]), ha="center", va="bottom", fontsize=10)


def _labelled(jobs: Sequence[dict[str, Any]], seconds: float) -> list[tuple[float, float, str]]:
    """The stretches of one lesson's jobs that have room for its number, the longest first: (start, end, lesson)."""
    stretches = []
    for lesson, group in groupby(jobs, key=lesson_of):
        members = list(group)
        stretches.append((members[0]["began"], members[-1]["ended"], lesson))
    kept: list[tuple[float, float, str]] = []
    for start, end, lesson in sorted(stretches, key=lambda stretch: stretch[0] - stretch[1]):
        near = [(start + end) / 2 - (a + b) / 2 for a, b, _ in kept]
        if all(abs(distance) > LABEL * seconds for distance in near):
            kept.append((start, end, lesson))
    return kept


def _time_axis(ax: Axes, build: Build) -> None:
    """Mark the time in seconds, or in minutes where they read better."""
    unit, seconds = ("min", 60) if build.seconds >= MINUTES else ("s", 1)
    step = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(0, build.seconds / seconds)
    ax.set_xticks([tick * seconds for tick in step if tick * seconds <= build.seconds])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / seconds:g}"))
    ax.set_xlabel(f"time in the build ({unit})")


def _colours(numbers: Mapping[str, int]) -> dict[str, str]:
    topics = list(dict.fromkeys(_topic(lesson) for lesson in numbers))
    return {topic: style.RANK_COLOURS[HUES[index % len(HUES)]] for index, topic in enumerate(topics)}


def _topic(lesson: str) -> str:
    return lesson.partition("/")[0]


def _name(device: str) -> str:
    """What a device is called: all cores are one; a GPU may have a long name of its own."""
    if device == CPU:
        return "all cores"
    return f"GPU {device}" if device.isdigit() else f"{device[:8]}…"


def _idle(build: Build, *devices: str) -> str:
    return f"{style.number(100 * build.idle(*devices))} %"


def _words(build: Build) -> str:
    words = []
    for device in build.devices:
        held = length(build.held_back(device)) / build.seconds
        although = f" ({style.number(100 * held)} % although a job waited)" if held else ""
        words.append(f"{_name(device)} {_idle(build, device)} idle{although}")
    what = f"{len(build.jobs)} job{'s' * (len(build.jobs) != 1)}, {style.number(build.device_seconds)} device-seconds"
    whole = f"Jobs on each device over {style.quantity(build.seconds, 's')} of a build: {what}."
    return f"{whole} {'; '.join(words)}."


def lesson_of(job: Mapping[str, Any]) -> str:
    """Return the lesson that started a job, or, outside of a lesson, the job's script."""
    return job["lesson"] or job["script"]


def lessons(build: Build, names: Names | None = None) -> list[str]:
    """Return the lessons that started jobs, first those that `names` has, in its order."""
    there = dict.fromkeys(lesson_of(job) for job in build.jobs)
    return [*(lesson for lesson in names or () if lesson in there),
            *(lesson for lesson in there if lesson not in (names or ()))]  # fmt: skip


def totals(build: Build) -> Table:
    """What a build took: wall time, device time, jobs, waiting, and the idle share of each device."""
    gpus = [device for device in build.devices if device != CPU]
    minutes = f"{style.number(build.seconds / 60)} min" if build.seconds >= MINUTES else ""
    at_once = {None: "", 1: "one at a time"}.get(build.workers, f"up to {build.workers} at once")
    rows: list[list[object]] = [
        ["wall time", lines(style.quantity(build.seconds, "s"), soft(minutes))],
        ["device-seconds, of all jobs", style.quantity(build.device_seconds, "s")],
        ["lessons that started jobs", lines(str(len(lessons(build))), soft(at_once))],
        ["jobs", len(build.jobs)],
        ["of them ended in an error", sum(job["failed"] for job in build.jobs)],
        ["waited for a device, all jobs", style.quantity(build.waited, "s")],
    ]
    if len(gpus) > 1:
        rows.append([f"idle: mean of {len(gpus)} GPUs", _idle(build, *gpus)])
    for device in build.devices:
        held = length(build.held_back(device)) / build.seconds
        although = soft(f"{style.number(100 * held)} % although a job waited") if held else ""
        rows.append([f"idle: {_name(device)}", lines(_idle(build, device), although)])
    notes = []
    if any(job["failed"] for job in build.jobs):
        notes.append("Lessons show errors on purpose; one that a lesson does not expect fails its build.")
    if any(build.held_back(device) for device in build.devices):
        notes.append("A job waits where fewer devices are free than it needs, or a job outside of this build has them.")
    return Table(["of the build", "measured"], rows, f"What the build took{_so_far(build)}", notes)


def by_lesson(build: Build, names: Names | None = None) -> Table:
    """For each lesson: its jobs, how long it took from its first job's start to its last one's end, and device time."""
    rows = []
    for number, lesson in enumerate(lessons(build, names), 1):
        own = [job for job in build.jobs if lesson_of(job) == lesson]
        span = max(job["ended"] for job in own) - min(job["began"] for job in own)
        held = sum((job["ended"] - job["began"]) * len(job["devices"]) for job in own)
        shown = cell((names or {}).get(lesson, lesson))
        rows.append(
            [
                Cell(f"{number}  {shown.text}", f"{number}&ensp;{shown.html}"),
                style.quantity(held, "s"),
                len(own),
                style.quantity(sum(job["began"] - job["asked"] for job in own), "s"),
                style.quantity(span, "s"),
                sum(job["failed"] for job in own),
            ]
        )
    columns = ["lesson", "device-seconds", "jobs", "waited", "first start to last end", "jobs with an error"]
    return Table(columns, rows, f"Each lesson's part{_so_far(build)}")


def _so_far(build: Build) -> str:
    return "" if build.over else " so far"
