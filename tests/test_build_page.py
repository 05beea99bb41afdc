"""How fast a build was: its record of jobs, the picture and the tables drawn from it, and the page that shows them."""

import json
import re
import shutil
from pathlib import Path

import pytest
import small_site
from conftest import ROOT
from handson import jobs
from handson.show import build_report, style

LESSON = "topic/plot_small"
PAGE = "Speed\n=====\n\n.. handson-build::\n"


def job(devices, asked, began, ended, lesson="topic/plot_a", **more):
    """A job's row; times are seconds after the beginning."""
    times = {"at": 100.0 + ended, "asked": 100.0 + asked, "began": 100.0 + began, "ended": 100.0 + ended}
    what = {"lesson": lesson, "script": "job.py", "argv": [], "ranks": 1, "preset": "laptop", "failed": False}
    return {"kind": "job", **what, "devices": devices, **times, **more}


def write(path: Path, *rows, devices=("0", "1"), ended=20.0, **begin) -> Path:
    """Write a record that begins at 100 s; without an end where `ended` is None."""
    ends = [] if ended is None else [{"kind": "end", "at": 100.0 + ended}]
    whole = [{"kind": "begin", "at": 100.0, "devices": list(devices), **begin}, *rows, *ends]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in whole))
    return path


@pytest.fixture
def build(tmp_path):
    """Reads back a build of these rows."""
    return lambda *rows, until=None, **begin: jobs.read(write(tmp_path / "b.jsonl", *rows, **begin), until)


def cells(table) -> dict[str, list[str]]:
    """A table's rows by their first cell, as text."""
    return {str(first): [str(cell) for cell in others] for first, *others in table.rows}


# --- the record -------------------------------------------------------------------------------------------------


def test_a_device_is_held_back_where_a_job_waits_for_more_than_are_free(build):
    read = build(job(["0"], 0, 0, 10), job(["0", "1"], 4, 10, 16))
    assert read.held_back("1") == [(104.0, 110.0)]
    assert read.held_back("0") == []  # it was in use while that job waited


def test_idle_gpus_are_not_held_back_by_a_job_that_waits_for_the_cores(build):
    read = build(job(["cpu"], 0, 0, 10), job(["cpu"], 1, 10, 12), job(["0"], 15, 15, 16), devices=["0", "cpu"])
    assert read.held_back("0") == []


def test_a_job_that_gets_its_devices_at_once_has_not_waited_for_them(build):
    read = build(job(["0"], 1, 1.9, 10))
    assert read.held_back("0") == [] and read.held_back("1") == []
    assert read.waited == pytest.approx(0.9)


def test_devices_are_listed_as_people_count_and_the_cores_last(build):
    names = ["10", "9", "GPU-3f", "cpu"]
    assert build(job(["9"], 0, 0, 1), devices=names).devices == ("GPU-3f", "9", "10", "cpu")


def test_a_build_that_goes_on_ends_where_its_reader_says(build):
    read = build(job(["0"], 0, 0, 10), until=140.0, ended=None)
    assert (read.seconds, read.over, read.idle("0")) == (40.0, False, 0.75)


def test_where_a_build_was_made_is_read_back_if_it_was_noted(build):
    assert (build(job(["0"], 0, 0, 1)).made, build(job(["0"], 0, 0, 1)).workers) == (None, None)
    noted = build(job(["0"], 0, 0, 1), made={"hardware": "H"}, workers=6)
    assert (noted.made, noted.workers) == ({"hardware": "H"}, 6)


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "job", "at": 1.0, "lesson": null}',
        json.dumps(job("0", 0, 0, 1)),
        json.dumps(job(["0"], 0, 0, 1) | {"ended": "now"}),
        '{"kind": "begin", "at": 1.0}',
        "[]",
        "\xff",
    ],
)
def test_a_row_that_lacks_what_its_reader_needs_is_damage_and_named(tmp_path, line):
    record = write(tmp_path / "b.jsonl", job(["0"], 0, 0, 1), ended=None)
    record.write_bytes(record.read_bytes() + line.encode("latin-1") + b"\n")
    with pytest.raises(ValueError, match=r"b\.jsonl, line 3 is damaged: restore or delete the file"):
        jobs.read(record)


def test_a_build_that_ran_nothing_is_no_damage(tmp_path):
    with pytest.raises(jobs.NoJobs, match=r"b\.jsonl holds no job"):
        jobs.read(write(tmp_path / "b.jsonl"))


def test_jobs_whose_code_or_arguments_changed_since_are_found(build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [job(["0"], 0, 0, 1, script=f"{name}.py", without=["x"]) for name in ("kept", "edited", "gone", "broken")]
    for row in rows:
        Path(row["script"]).write_text("import kept\n")
        row["key"] = jobs.request(row).key
    assert jobs.outdated(build(*rows)) == []
    Path("edited.py").write_text("import kept, sys\n")
    Path("broken.py").write_text("import\n")
    Path("gone.py").unlink()
    assert [row["script"] for row in jobs.outdated(build(*rows))] == ["edited.py", "gone.py", "broken.py"]
    del rows[0]["key"]
    assert jobs.outdated(build(*rows)) is None


# --- the picture and the tables ---------------------------------------------------------------------------------


def written_in(picture) -> list[str]:
    """The texts beside a picture's lanes and above its bars."""
    ax = picture.axes[0]
    return [label.get_text() for label in ax.get_yticklabels()], [text.get_text() for text in ax.texts]


def test_lanes_name_their_device_and_say_how_idle_it_was(build):
    read = build(job(["0"], 0, 0, 10), job(["cpu"], 0, 0, 15), devices=["0"])
    drawn = build_report.timeline(read)
    assert written_in(drawn)[0] == ["GPU 0\n50.0 % idle", "all cores\n25.0 % idle"]
    assert "GPU 0 50.0 % idle; all cores 25.0 % idle" in drawn.alt


def test_lessons_have_the_numbers_of_their_order_in_the_picture_and_in_the_table(build):
    read = build(job(["0"], 0, 0, 10, "b/plot_b"), job(["0"], 10, 10, 19, "a/plot_a"), job(["1"], 0, 0, 5, "b/plot_b"))
    names = {"z/plot_z": "Z", "a/plot_a": "A lesson", "b/plot_b": "B lesson"}
    assert written_in(build_report.timeline(read, names))[1] == ["2", "1", "2"]
    table = cells(build_report.by_lesson(read, names))
    assert table == {
        "1  A lesson": ["9.00 s", "1", "0 s", "9.00 s", "0"],
        "2  B lesson": ["15.0 s", "2", "0 s", "10.0 s", "0"],
    }
    assert build_report.lessons(read) == ["b/plot_b", "a/plot_a"]


def test_where_numbers_would_touch_the_longer_stretch_keeps_its_own(build):
    short = [job(["0"], 10 + i, 10 + i, 10.3 + i, f"a/plot_{i}") for i in range(2)]
    read = build(job(["0"], 0, 0, 9.9, "a/plot_long"), *short, ended=100.0)
    shown = written_in(build_report.timeline(read))[1]
    assert shown == ["1", "2"]


def test_a_hundred_and_seventy_jobs_of_eighteen_lessons_on_six_lanes_get_a_bar_each_and_no_numbers_that_touch(build):
    rows = [job([str(i % 6)], 2 * i, 2 * i, 2 * i + 9, f"topic_{i % 6}/plot_{i % 18}") for i in range(170)]
    drawn = build_report.timeline(build(*rows, devices="012345", ended=360.0))
    ax = drawn.axes[0]
    assert {(bar.get_x(), bar.get_width()) for bar in ax.patches} >= {(2.0 * i, 9.0) for i in range(170)}
    drawn.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) >= 30
    assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if box.overlaps(other)]


def test_long_builds_are_drawn_in_minutes_and_short_ones_in_seconds(build):
    def ticks(seconds):
        ax = build_report.timeline(build(job(["0"], 0, 0, 1), ended=seconds)).axes[0]
        return ax.get_xlabel(), [ax.xaxis.get_major_formatter()(tick) for tick in ax.get_xticks()]

    assert ticks(600.0) == ("time in the build (min)", ["0", "2", "4", "6", "8", "10"])
    assert ticks(100.0) == ("time in the build (s)", ["0", "20", "40", "60", "80", "100"])


def test_a_job_that_failed_on_purpose_is_counted_and_not_drawn_as_a_failure(build):
    read = build(job(["0"], 0, 0, 10), job(["1"], 0, 0, 10, failed=True))
    assert cells(build_report.totals(read))["of them ended in an error"] == ["1"]
    assert "one that a lesson does not expect fails its build" in str(build_report.totals(read))
    assert style.FAILURE not in {style.matplotlib.colors.to_hex(bar.get_facecolor()) for bar in
                                 build_report.timeline(read).axes[0].patches}  # fmt: skip
    assert "does not expect" not in str(build_report.totals(build(job(["0"], 0, 0, 10))))


def test_totals_of_several_devices_add_up_and_tell_why_they_were_idle(build):
    read = build(job(["0"], 0, 0, 10), job(["0", "1"], 5, 10, 20), workers=3, ended=500.0)
    table = cells(build_report.totals(read))
    assert table["wall time"] == ["500 s; 8.33 min"]
    assert table["device-seconds, of all jobs"] == ["30.0 s"] and table["jobs"] == ["2"]
    assert table["lessons that started jobs"] == ["1; up to 3 at once"]
    assert table["waited for a device, all jobs"] == ["5.00 s"]
    assert table["idle: mean of 2 GPUs"] == ["97.0 %"]
    assert table["idle: GPU 0"] == ["96.0 %"] and table["idle: GPU 1"] == ["98.0 %; 1.00 % although a job waited"]


# --- the page ---------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path):
    """A small site with the page."""
    site = small_site.make(tmp_path)
    docs = site.root / "docs"
    shutil.copytree(ROOT / "docs" / "_ext", docs / "_ext", dirs_exist_ok=True)
    conf = (site.root / "conf.py").read_text()
    (site.root / "conf.py").write_text(conf.replace('"build_guards",', '"build_guards", "build_page", "pictures",'))
    (docs / "index.md").write_text("plot_small: A small lesson\n")  # where the order of the lessons is read
    (docs / "index.rst").write_text((docs / "index.rst").read_text() + "   speed\n")
    (docs / "speed.rst").write_text(PAGE)
    return site


def page(site) -> str:
    return (site.root / "build" / "html" / "speed.html").read_text()


def words(site) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page(site)).split())


def build_well(site):
    code, said, _ = site.build()
    assert code == 0, said


@pytest.mark.ranks
def test_a_build_shows_its_own_jobs_and_the_next_one_that_ran_none_says_so(site):
    build_well(site)
    assert "The one job that this build ran is shown, up to when this page was made" in words(site)
    assert 'href="lessons/topic/plot_small.html">A small lesson</a>' in page(site)
    assert "What the build took so far" in words(site) and "one at a time" in words(site)
    (alt,) = set(re.findall(r'alt="(Jobs on each device[^"]*)"', page(site)))
    assert "1 job, " in alt and "all cores" in alt
    assert page(site).count(alt) == 2 and "build_own_dark.svg" in page(site)  # for the light and for the dark page
    assert "No full build has been recorded yet" in words(site)
    build_well(site)
    assert "No full build has been recorded, and this build ran no job." in words(site)
    assert "up to when this page was made" not in words(site)


@pytest.mark.ranks
def test_a_kept_build_is_shown_and_says_how_many_of_its_jobs_ran_other_code(site):
    build_well(site)
    (record,) = (site.root / "build" / "handson" / "jobs").glob("*.jsonl")
    kept = site.root / "docs" / "measured" / "build.jsonl"
    kept.parent.mkdir()
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    rows[0]["made"]["hardware"] = "4 × A GPU"
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_well(site)
    assert "Recorded on 4 × A GPU ·" in words(site) and "The code of its jobs is the code that is here" in words(site)
    (offered,) = (site.root / "build" / "html" / "_downloads").rglob("build.jsonl")
    assert offered.read_text() == kept.read_text()
    script = site.root / "tutorial_src" / "hybrid_parallel" / "job.py"
    script.write_text(script.read_text() + "# another line\n")
    build_well(site)
    assert "The code of 1 of its 1 jobs has changed since." in words(site)


@pytest.mark.ranks
def test_a_damaged_record_fails_the_build_and_is_named(site):
    write(site.root / "docs" / "measured" / "build.jsonl", {"kind": "job", "at": 1.0})
    code, said, _ = site.build()
    assert code != 0
    assert "docs/measured/build.jsonl, line 2 is damaged: restore or delete the file" in said
