"""How a build used its devices: a lane for each device over the build's time, and what that adds up to."""

from __future__ import annotations

from matplotlib.patches import Rectangle

from handson.jobs import Build
from handson.show import picture, style
from handson.show.tables import Table, failure


def _name(device: str) -> str:
    return "all cores" if device == "cpu" else f"GPU {device}"


def timeline(build: Build) -> picture.Picture:
    """Draw when each device served a job, a shade for each lesson in turn, and what each device was idle for."""
    lessons = list(dict.fromkeys(job["lesson"] or job["script"] for job in build.jobs))
    shades, words = (style.NEUTRAL, style.PALE), []
    with style.context():
        drawn, axes = picture.new(height=1.0 + 0.42 * len(build.devices))
        ax = axes[0, 0]
        for lane, device in enumerate(build.devices):
            for job in build.jobs:
                if device not in job["devices"]:
                    continue
                lesson = lessons.index(job["lesson"] or job["script"])
                colour = style.FAILURE if job["failed"] else shades[lesson % len(shades)]
                corner, width = (job["began"] - build.began, lane - 0.36), job["ended"] - job["began"]
                ax.add_patch(
                    Rectangle(corner, width, 0.72, facecolor=colour, edgecolor=style.BACKGROUND, linewidth=0.5)
                )
            idle = f"{style.number(100 * build.idle(device))} % idle"
            ax.text(1.015 * build.seconds, lane, idle, va="center", fontsize=10)
            words.append(f"{_name(device)} {idle}")
        ax.set(xlim=(0, build.seconds), ylim=(len(build.devices) - 0.5, -0.5), xlabel="time in the build (s)")
        ax.set_yticks(range(len(build.devices)), [_name(device) for device in build.devices])
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        return picture.finish(
            drawn, f"Jobs on each device over a build of {style.quantity(build.seconds, 's')}: {', '.join(words)}."
        )


def totals(build: Build) -> Table:
    """What a build took: wall time, device time, jobs, waiting, and the idle share of each device."""
    waited = sum(job["began"] - job["asked"] for job in build.jobs)
    bad = sum(job["failed"] for job in build.jobs)
    rows = [
        ["wall time", style.quantity(build.seconds, "s")],
        ["device time, all devices", style.quantity(build.device_seconds, "s")],
        ["jobs run live", len(build.jobs)],
        ["failed, by intention or not", failure(str(bad)) if bad else 0],
        ["waited for a device, all jobs", style.quantity(waited, "s")],
        *([f"idle: {_name(device)}", f"{style.number(100 * build.idle(device))} %"] for device in build.devices),
    ]
    return Table(["of the build", "measured"], rows, "What the build took")


def by_lesson(build: Build) -> Table:
    """For each lesson: its jobs, how long it took from its first job's start to its last one's end, and device time."""
    rows = []
    for lesson in dict.fromkeys(job["lesson"] or job["script"] for job in build.jobs):
        own = [job for job in build.jobs if (job["lesson"] or job["script"]) == lesson]
        span = max(job["ended"] for job in own) - min(job["began"] for job in own)
        held = sum((job["ended"] - job["began"]) * len(job["devices"]) for job in own)
        rows.append([lesson, len(own), style.quantity(span, "s"), style.quantity(held, "s")])
    return Table(["lesson", "jobs", "first to last", "device time"], rows, "Each lesson's part")
