"""What no page of the site may show: each rule fails on a page that breaks it, and a build fails with it."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SCRIPTS
from handson import store

ROOT = Path(__file__).parent.parent
LESSON = "topic/plot_ring"
ORIGIN = '<div class="handson-origin"><p data-way="live">1 run made live on the CPU</p></div>'
OUTPUT = '<div class="sphx-glr-script-out"><pre>loss 2.3</pre></div>'
SOURCE = "run = launch('ring.py')"


@pytest.fixture
def honesty(monkeypatch):
    """The extension that reads the built pages."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    import honesty

    return honesty


@pytest.fixture
def noted(honesty, tmp_path):
    """Notes what a lesson used when it was executed, as the kit does; returns a function that changes the note."""
    script = tmp_path / "ring.py"
    script.write_text((SCRIPTS / "ring.py").read_text())
    request = store.Request(script, ("ok",), 2, "laptop")
    run = {"script": str(script), "argv": ["ok"], "ranks": 2, "preset": "laptop", "without": []}

    def note(**changes):
        used = run | {"key": request.key, "way": "live", "date": "2026-11-22", "note": ""} | changes
        store.write(honesty.note_file(LESSON), json.dumps({"gpus": [], "runs": [used]}))
        return script

    return note


def found(honesty, page, source=SOURCE):
    return list(honesty.lesson_problems(page, LESSON, source))


def test_a_lesson_whose_runs_are_those_of_today_passes(honesty, noted):
    noted()
    assert found(honesty, ORIGIN + OUTPUT) == []


def test_a_lesson_that_ran_nothing_is_found(honesty):
    page = "<article><p>words</p><pre>code = 1</pre></article>"
    assert found(honesty, page, "code = 1") == ["the lesson ran nothing: its page has neither output nor picture"]
    shown = '<article><img class="sphx-glr-single-img" alt="x" src="x.svg"></article>'
    assert found(honesty, shown, "code = 1") == []


def test_a_lesson_whose_jobs_were_never_started_is_found(honesty):
    assert found(honesty, OUTPUT) == ["the lesson starts jobs, but no run was noted when it was executed"]


def test_runs_of_unknown_origin_are_found(honesty, noted):
    noted()
    assert found(honesty, OUTPUT) == ["the page does not say where its runs come from"]


def test_a_run_whose_script_has_changed_since_is_found(honesty, noted):
    script = noted()
    script.write_text(script.read_text() + "# another line\n")
    (problem,) = found(honesty, ORIGIN + OUTPUT)
    assert "ring.py ok` on 2 ranks is shown as current, but what it was made of has changed since" in problem


def test_a_run_whose_script_is_gone_is_found(honesty, noted):
    noted().unlink()
    (problem,) = found(honesty, ORIGIN + OUTPUT)
    assert "is shown as current" in problem


def test_a_changed_run_may_be_shown_where_the_page_says_that_it_is_stale(honesty, noted):
    noted(key="0" * 64)
    said = '<p class="handson-note">This run is stale: ring.py changed since.</p>'
    assert found(honesty, ORIGIN + said + OUTPUT) == []


def test_what_the_reader_must_know_of_a_run_may_not_be_missing(honesty, noted):
    noted(note="These numbers are this host's: the recording is stale.")
    (problem,) = found(honesty, ORIGIN + OUTPUT)
    assert problem.endswith("These numbers are this host's: the recording is stale.")


def test_a_colour_code_outside_of_an_output_is_found(honesty):
    page = "<article><table><td>\x1b[31mred</td></table></article>"
    assert list(honesty.problems(page, honesty.machine_paths(ROOT))) == [
        "a terminal colour code outside a lesson's output"
    ]


@pytest.fixture
def site(honesty, noted, tmp_path, monkeypatch):
    """A built site of one good lesson; returns its folder and a function that checks it as the build does."""
    noted()
    out, gallery = tmp_path / "html", tmp_path / "checkout" / "gallery" / "topic"
    gallery.mkdir(parents=True)
    (gallery / "plot_ring.py").write_text(SOURCE)
    page = out / "lessons" / "topic" / "plot_ring.html"
    page.parent.mkdir(parents=True)
    page.write_text(f"<article>{ORIGIN}{OUTPUT}</article>")

    said: list[str] = []
    logger = SimpleNamespace(warning=lambda text, *values, **kind: said.append(text % values))
    monkeypatch.setattr(honesty, "logger", logger)

    def check(exception=None):
        app = SimpleNamespace(
            confdir=tmp_path / "checkout",
            outdir=out,
            statuscode=0,
            builder=SimpleNamespace(format="html"),
            config=SimpleNamespace(sphinx_gallery_conf={}),
        )
        said.clear()
        honesty.check(app, exception)
        return app.statuscode, list(said)

    return SimpleNamespace(out=out, page=page, check=check)


def test_an_honest_site_passes(site):
    assert site.check() == (0, [])


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("\x1b[31mred", "a terminal colour code"),
        ("x.py:3: UserWarning: no apex", "a Python warning"),
        ("epoch: 50%|#####     | 5/10", "a progress bar"),
        (f"in {sys.prefix}/bin", "a path of the building machine"),
    ],
)
def test_a_build_fails_on_what_a_lesson_printed(site, written, said):
    site.page.write_text(site.page.read_text().replace("loss 2.3", written))
    code, messages = site.check()
    assert code == 1 and len(messages) == 1
    assert messages[0].startswith(f"lessons/topic/plot_ring.html: {said}")


def test_a_build_fails_on_a_picture_without_description(site):
    (site.out / "index.html").write_text('<article><img src="a.svg"></article>')
    assert site.check() == (1, ["index.html: a picture without a description: a.svg"])


def test_a_build_fails_on_a_lesson_that_ran_nothing(site):
    site.page.write_text(f"<article>{ORIGIN}<pre>code = 1</pre></article>")
    code, messages = site.check()
    assert code == 1 and "the lesson ran nothing" in messages[0]


def test_a_build_fails_on_numbers_whose_code_has_changed(site, tmp_path):
    (tmp_path / "ring.py").write_text("print('another script')\n")
    code, messages = site.check()
    assert code == 1 and len(messages) == 1 and "has changed since" in messages[0]


@pytest.mark.parametrize("name", ["_downloads/1/plot_ring.ipynb", "_downloads/2/run.json", "searchindex.js"])
def test_a_build_fails_on_a_path_of_its_machine_in_what_readers_take_along(site, name):
    path = site.out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"log": [f"saved in {Path.home()}/runs"]}))
    code, messages = site.check()
    assert code == 1 and messages[0].startswith(f"{name}: a path of the building machine")
    path.write_text(json.dumps({"log": ["saved in /tmp/x, as the lesson says"]}))
    assert site.check()[0] == 0


def test_a_build_that_failed_already_is_not_checked_again(site):
    site.page.write_text("<article></article>")
    assert site.check(RuntimeError("a lesson failed")) == (0, [])
