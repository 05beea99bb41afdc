"""The machinery of the site, without building it: options, pins, what makes a page outdated, what no page may show."""

import hashlib
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from handson import lessons

ROOT = Path(__file__).parent.parent


@pytest.fixture
def extension(monkeypatch):
    """Imports one of the site's own Sphinx extensions."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    return importlib.import_module


def build(*arguments):
    """Call the build as nox does."""
    command = [sys.executable, "docs/build.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("argument", "named"), [("--runs=sometimes", "auto, live, recorded"), ("--fast", "--fast is no option")]
)
def test_build_refuses_what_it_does_not_know_in_one_sentence(argument, named):
    refused = build(argument)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and named in refused.stderr
    assert len(refused.stderr.splitlines()) == 1 and not refused.stdout


def test_build_refuses_an_unknown_policy_in_the_environment(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "never")
    refused = build()
    assert refused.returncode == 2 and "never" in refused.stderr


def test_nox_refuses_an_unknown_way_before_it_installs_anything():
    pytest.importorskip("nox", reason="this environment was made without nox")
    command = [sys.executable, "-m", "nox", "-s", "build_docs", "--", "--runs=sometimes"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0
    assert "--runs=sometimes is no way to get runs" in refused.stderr and "Installing" not in refused.stderr


def test_every_requirement_is_pinned_and_comes_from_the_default_index():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line.partition("#")[0].strip() for line in lines if line.partition("#")[0].strip()]
    loose = [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", pin)]
    assert loose == ["torch>=2.11,<2.14"]
    names = [re.split(r"[=<>]", pin)[0].lower() for pin in pins]
    assert len(set(names)) == len(names)
    assert "torchvision" not in names


CLEAN = """<article><div class="sphx-glr-script-out"><pre>step 0: loss 2.30 (50% done), weights[0]</pre></div>
<img alt="four bars" src="a.svg"><div class="sphx-glr-thumbcontainer"><img alt="" src="t.svg"></div></article>"""


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("\x1b[31mred\x1b[0m", "a terminal colour code"),
        ("[1;31mred[0m", "a terminal colour code"),
        ("epoch: 50%|#####     | 5/10", "a progress bar"),
        ("12.5it/s", "a progress bar"),
        ("x.py:3: UserWarning: no apex", "a Python warning"),
        ("  warnings.warn(text)", "a Python warning"),
        (f"in {ROOT}/conf.py", "a path of the building machine"),
        ("in /tmp/handson-x1/rows", "a path of the building machine"),
    ],
)
def test_honesty_check_finds_debris_in_a_lessons_output(extension, written, found):
    honesty = extension("honesty")
    page = f'<div class="sphx-glr-script-out"><pre>{written}</pre></div>'
    assert [
        problem.partition(" in a lesson")[0].partition(":")[0]
        for problem in honesty.problems(page, honesty.machine_paths(ROOT))
    ] == [found]


@pytest.mark.parametrize("image", ['<img src="a.svg">', '<img src="a.svg" alt=" ">'])
def test_honesty_check_finds_a_picture_without_description(extension, image):
    honesty = extension("honesty")
    assert "without a description" in next(honesty.problems(f"<article>{image}</article>", honesty.machine_paths(ROOT)))


def test_honesty_check_lets_a_clean_page_pass(extension):
    honesty = extension("honesty")
    assert not list(honesty.problems(CLEAN, honesty.machine_paths(ROOT)))


@pytest.fixture
def built(tmp_path, extension):
    """A checkout of two lessons, one of which starts jobs, after a build; forget() is what the next build does."""
    outdated = extension("outdated_lessons")
    gallery, pages = tmp_path / "gallery" / "topic", tmp_path / "docs" / "lessons" / "topic"
    gallery.mkdir(parents=True)
    pages.mkdir(parents=True)
    (tmp_path / "conf.py").write_text("")
    for name, text in (("plot_run", "launch('train.py')"), ("plot_words", "print(1)")):
        (gallery / f"{name}.py").write_text(text)
        for suffix, content in (("py", text), ("rst", ""), ("py.md5", hashlib.md5(text.encode()).hexdigest())):
            (pages / f"{name}.{suffix}").write_text(content)
    app = SimpleNamespace(confdir=tmp_path, srcdir=tmp_path / "docs")
    (pages.parent / ".kit").write_text(outdated._kit_digest(app))
    return SimpleNamespace(
        gallery=gallery,
        pages=pages,
        forget=lambda: outdated.forget_outdated(app),
        current=lambda: sorted(path.name.partition(".")[0] for path in pages.glob("*.md5")),
    )


def test_lessons_with_unchanged_runs_are_left_alone(built, monkeypatch):
    monkeypatch.setattr(lessons, "is_current", lambda lesson: lesson == "topic/plot_run")
    built.forget()
    assert built.current() == ["plot_run", "plot_words"]


def test_a_lesson_whose_runs_changed_is_executed_again(built, monkeypatch):
    monkeypatch.setattr(lessons, "is_current", lambda lesson: False)
    built.forget()
    assert built.current() == ["plot_words"]


def test_a_change_of_the_kit_executes_every_lesson_again(built, monkeypatch):
    monkeypatch.setattr(lessons, "is_current", lambda lesson: True)
    (built.pages.parent / ".kit").write_text("another digest")
    built.forget()
    assert built.current() == []


def test_a_lesson_to_be_executed_loses_its_old_thumbnail(built, monkeypatch):
    monkeypatch.setattr(lessons, "is_current", lambda lesson: True)
    thumbnails = built.pages / "images" / "thumb"
    thumbnails.mkdir(parents=True)
    for name in ("plot_run", "plot_words"):
        (thumbnails / f"sphx_glr_{name}_thumb.png").write_text("")
    (built.gallery / "plot_run.py").write_text("launch('train.py')  # another text")
    built.forget()
    assert [path.name for path in thumbnails.iterdir()] == ["sphx_glr_plot_words_thumb.png"]


def test_nothing_is_left_of_a_lesson_that_was_removed(built, monkeypatch):
    monkeypatch.setattr(lessons, "is_current", lambda lesson: True)
    (built.gallery / "plot_words.py").unlink()
    built.forget()
    assert sorted(path.name for path in built.pages.iterdir()) == ["plot_run.py", "plot_run.py.md5", "plot_run.rst"]


def shown(way, hardware, date, note=""):
    """One run on a page."""
    made = {"hardware": hardware, "torch": "2.13.0", "colossalai": "0.5.0", "python": "3.12.1", "date": date}
    run = SimpleNamespace(provenance=made, files={"train.py": "1", "worker.py": "2"})
    return SimpleNamespace(way=way, note=note, run=run, file=Path("run.json"))


def test_a_page_says_where_its_runs_come_from_in_one_line_for_each_host(extension):
    runs = [
        shown("recorded", "4 × NVIDIA H200", "2026-11-20T10:00:00+00:00"),
        shown("live", "the CPU (2 cores, x < y)", "2026-11-22T10:00:00+00:00"),
        shown("recorded", "4 × NVIDIA H200", "2026-11-21T10:00:00+00:00"),
        shown("cached", "the CPU (2 cores, x < y)", "2026-11-22T09:00:00+00:00"),
    ]
    live, recorded = extension("origin").lines(runs)
    assert 'data-way="live">2 runs made live on the CPU (2 cores, x &lt; y) · 1 of them for an earlier build' in live
    assert (
        'data-way="recorded">2 runs recorded on 4 × NVIDIA H200 · 2026-11-20 to 2026-11-21 · PyTorch 2.13' in recorded
    )


def test_a_page_names_the_edits_that_the_keys_of_its_recordings_pass_over(extension, monkeypatch):
    edited = {name: None for name in ("worker.py", "other.py")}
    monkeypatch.setattr("handson.sources.harmless_edits", lambda: edited)
    *_, said = extension("origin").lines([shown("recorded", "1 × NVIDIA H200", "2026-11-20T10:00:00+00:00")], "../")
    assert "edited since the recording: <code>worker.py</code>" in said
    assert 'href="../how_it_works.html#harmless"' in said
    assert len(extension("origin").lines([shown("live", "the CPU", "2026-11-20T10:00:00+00:00")])) == 1


def test_a_page_says_once_what_its_reader_must_know_of_several_runs(extension):
    notes = [f"This host's: the recording of `train.py {mode}` on 4 ranks is stale" for mode in ("1d", "2d")]
    runs = [shown("live", "the CPU", "2026-11-22", note) for note in notes]
    *_, note = extension("origin").lines(runs)
    assert note == '<p class="handson-note">This host&#x27;s: the recording of such a run is stale</p>'
    assert len(extension("origin").lines(runs)) == 2


def test_formulas_need_no_script(extension):
    writer = SimpleNamespace(body=[])
    from docutils import nodes

    with pytest.raises(nodes.SkipNode):
        extension("mathml").visit_inline(writer, nodes.math("", r"2\frac{P-1}{P}n"))
    assert "".join(writer.body).startswith("<math") and "<mfrac>" in writer.body[0]
