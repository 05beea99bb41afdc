"""The same jobs started by `colossalai run` and by the kit: a row for each, a picture, and whether the goal was met."""

from __future__ import annotations

from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from handson.measured import Bench, Job
from handson.show import picture, style
from handson.show.tables import Table, code, lines, soft


def _name(job: Job) -> str:
    return f"{job.script.rpartition('/')[2]}, {job.ranks} rank{'s' * (job.ranks != 1)}"


def _where(bench: Bench) -> str:
    if bench.provenance["device"] != "cuda":
        return "the CPU"
    return "GPUs" if all(job.preset == "gpu" for job in bench.jobs) else "GPUs and on their host's cores"


def jobs(bench: Bench) -> Table:
    """Each job's seconds both ways, and those of all jobs together."""
    mixed = len({job.preset for job in bench.jobs}) > 1
    rows = []
    for index, job in enumerate(bench.jobs):
        marks = [f"{job.preset} preset"] * mixed + ["the kit's first job"] * (index == 0 and bench.workers == 1)
        name = " ".join([job.script.rpartition("/")[2], *job.argv])
        taken = (style.quantity(job.colossalai_run, "s"), style.quantity(job.kit, "s"))
        ratio = style.relative(job.colossalai_run, job.kit)
        rows.append([lines(code(name), *map(soft, marks)), job.ranks, *taken, ratio])
    slow, fast = bench.totals
    whole = (style.quantity(slow, "s"), style.quantity(fast, "s"), style.relative(slow, fast))
    rows.append(["all jobs", None, *whole])
    rounds, agreed = len(bench.kit), sum(job.agreed for job in bench.jobs)
    if bench.workers == 1:
        how = "One after another both ways. The kit's first job also imported torch and colossalai, once for all."
    else:
        how = (
            f"Through the kit {bench.workers} processes started jobs, each job on devices of its own; the last row is "
            "wall clock, not a sum. The first job of each process also imported torch."
        )
    notes = [
        f"Seconds of wall clock, {'one round' if rounds == 1 else f'medians of {rounds} rounds'}. {how}",
        f"Both ways the ranks recorded the same {agreed:,} words, whole numbers and losses.",
    ]
    if rounds > 1:
        slowest, fastest = (_spread(taken) for taken in (bench.colossalai_run, bench.kit))
        notes.append(f"Round by round all jobs took {slowest} by colossalai run, {fastest} through the kit.")
    columns = ["job", "ranks", "colossalai run", "the kit", "ratio"]
    return Table(columns, rows, f"The same jobs, started in two ways on {_where(bench)}", notes)


def _spread(taken: list[float]) -> str:
    return f"{style.quantity(min(taken), 's')} to {style.quantity(max(taken), 's')}"


def verdict(bench: Bench) -> str:
    """What came out, in a sentence."""
    slow, fast = (style.quantity(seconds, "s") for seconds in bench.totals)
    goal = "met" if bench.met else "missed"
    count = f"{len(bench.jobs)} job{'s' * (len(bench.jobs) != 1)}"
    return (
        f"{count} took {slow} by colossalai run and {fast} through the kit, a ratio of {style.number(bench.ratio)}; "
        f"the goal, at least {bench.goal:g}, is {goal}."
    )


def by_script(bench: Bench) -> Table:
    """The jobs of each script (and preset) together: many ranks for a moment gain more than one that computes."""
    mixed = len({job.preset for job in bench.jobs}) > 1
    rows = []
    for script, preset in dict.fromkeys((job.script, job.preset) for job in bench.jobs):
        own = [job for job in bench.jobs if (job.script, job.preset) == (script, preset)]
        slow, fast = sum(job.colossalai_run for job in own), sum(job.kit for job in own)
        ranks = style.listed([str(count) for count in sorted({job.ranks for job in own})])
        taken = (style.quantity(slow, "s"), style.quantity(fast, "s"), style.relative(slow, fast))
        rows.append([lines(code(script), *[soft(f"{preset} preset")] * mixed), len(own), ranks, *taken])
    columns = ["script", "jobs", "ranks", "colossalai run", "the kit", "ratio"]
    sums = "Sums over jobs: what the kit gained by running several at once is not in them."
    return Table(columns, rows, f"By script, on {_where(bench)}", [sums] if bench.workers > 1 else [])


def chart(bench: Bench) -> picture.Picture:
    """Draw each job's seconds both ways, joined by a line, on a logarithmic axis; the longest job first."""
    ordered = sorted(bench.jobs, key=lambda job: -job.colossalai_run)
    with style.context():
        drawn, axes = picture.new(height=0.9 + 0.27 * len(ordered))
        ax, rows = axes[0, 0], range(len(ordered))
        slow, fast = [job.colossalai_run for job in ordered], [job.kit for job in ordered]
        ax.hlines(rows, fast, slow, color=style.PALE, linewidth=3, zorder=1)
        dot = {"linestyle": "none", "marker": "o", "markersize": 7.5, "markeredgecolor": style.FOREGROUND}
        ax.plot(fast, rows, markerfacecolor=style.FOREGROUND, label="the kit", **dot)
        ax.plot(slow, rows, markerfacecolor=style.BACKGROUND, label="colossalai run", **dot)
        right = 1.3 * max(slow + fast)
        for row, job in zip(rows, ordered, strict=True):
            ax.text(right, row, style.relative(job.colossalai_run, job.kit), va="center", fontsize=10)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(ylim=(len(ordered) - 0.4, -0.6), xlabel="time of the job (s)")
        ax.set_yticks(rows, [_name(job) for job in ordered])
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.grid(axis="x")
        ax.legend(ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1.0))
        said = "; ".join(
            f"{_name(job)} {style.quantity(job.colossalai_run, 's')} and {style.quantity(job.kit, 's')}"
            for job in ordered
        )
        return picture.finish(drawn, f"Time of each job by colossalai run and through the kit: {said}.")
