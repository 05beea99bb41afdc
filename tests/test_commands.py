"""The command line: run, record, status, doctor, as a user types them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SCRIPTS
from handson import harmless, lessons, sources, store
from handson.commands import record as recording

KIT = Path(__file__).parents[1] / "tutorial_src"


def handson(*words: str, python: tuple[str, ...] = (sys.executable,), cwd: Path | None = None):
    """Run `python -m handson` and return the finished process."""
    environment = {**os.environ, "PYTHONPATH": str(KIT)}
    return subprocess.run(
        [*python, "-m", "handson", *words], capture_output=True, text=True, env=environment, cwd=cwd, timeout=120
    )


@pytest.fixture
def gallery(tmp_path, monkeypatch):
    """A checkout with one lesson that makes one run."""
    topic = tmp_path / "checkout" / "gallery" / "topic"
    topic.mkdir(parents=True)
    monkeypatch.setattr(sources, "CHECKOUT", tmp_path / "checkout")
    lesson = topic / "plot_ring.py"
    lesson.write_text(f'from handson import launch\nrun = launch({str(SCRIPTS / "ring.py")!r}, "ok", ranks=2)\n')
    return lesson


def test_run_prints_the_log_and_where_it_was_made():
    done = handson("run", "--ranks", "2", "--preset", "laptop", str(SCRIPTS / "ring.py"), "ok")
    assert done.returncode == 0, done.stderr
    assert "step 2: sum of ranks 1" in done.stdout
    assert "2 ranks over gloo" in done.stdout and "ring.py ok x2: done in" in done.stderr


@pytest.mark.parametrize(
    "words, says",
    [
        (("nothing.py",), "error: there is no training script nothing.py"),
        (("--ranks", "0", str(SCRIPTS / "ring.py"), "ok"), "error: ranks=0: a job has at least one rank"),
        (("--ranks", "3", str(SCRIPTS / "ring.py"), "refuse"), "3 ranks cannot form a square: use 1, 4 or 9"),
        (("--preset", "tiny", str(SCRIPTS / "ring.py"), "ok"), "preset='tiny' is unknown"),
        (("--timeout", "0", str(SCRIPTS / "ring.py"), "ok"), "error: timeout=0 is no time limit: give seconds above 0"),
        (("--port", "99999", str(SCRIPTS / "ring.py"), "ok"), "error: --port 99999 is no port: name one from 1 to"),
    ],
)
def test_bad_input_is_one_sentence_and_a_non_zero_exit(words, says):
    done = handson("run", *words)
    assert done.returncode != 0 and says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_time_limit_of_the_environment_is_named_where_it_is_none(monkeypatch):
    monkeypatch.setenv("HANDSON_TIMEOUT", "soon")
    done = handson("run", str(SCRIPTS / "ring.py"), "ok")
    assert done.returncode == 1
    assert done.stderr == "error: HANDSON_TIMEOUT=soon is no time limit: give seconds above 0, such as 1200\n"


def test_record_writes_a_lessons_runs_and_status_finds_them_fresh(gallery, capsys):
    assert recording.record(["plot_ring"]) == 0
    (path,) = store.recordings().rglob("*.json")
    run, _ = store.load(path)
    assert run.lessons == ["topic/plot_ring"] and run.log[-1] == "step 2: sum of ranks 1"
    assert run.provenance["device"] == "cpu" and run.provenance["date"].startswith("20")
    assert "hostname" not in path.read_text() and os.uname().nodename not in path.read_text()


def test_record_removes_what_the_lesson_no_longer_uses(gallery):
    recording.record(["plot_ring"])
    (old,) = store.recordings().rglob("*.json")
    gallery.write_text(gallery.read_text().replace("ranks=2", "ranks=1"))
    recording.record(["all"])
    (new,) = store.recordings().rglob("*.json")
    assert new != old and "x1" in new.name


@pytest.mark.parametrize("state", ["fresh", "stale", "cut"])
def test_a_recording_on_more_gpus_than_this_host_has_stays_while_it_is_fresh(gallery, state):
    recording.record(["plot_ring"])
    (small,) = store.recordings().rglob("*.json")
    run, _ = store.load(small)
    request = store.Request(SCRIPTS / "ring.py", tuple(run.argv), run.ranks, "gpu")
    run.preset, run.key = "gpu", request.key
    if state == "stale":
        run.files = dict.fromkeys(run.files, "0" * 64)
    large = store.recordings() / request.file
    store.write(large, store.dump(run)[: -40 if state == "cut" else None])
    before = large.read_text()
    recording.record(["plot_ring"])
    assert large.read_text() == before
    # What the site shows in its place, or would show beside it, is nothing to keep.
    assert small.is_file() == (state != "fresh")


def test_a_run_asked_for_at_the_laptop_preset_is_recorded_beside_one_on_more_gpus(gallery):
    gallery.write_text(gallery.read_text().replace("ranks=2", "ranks=2, preset='laptop'"))
    recording.record(["plot_ring"])
    (small,) = store.recordings().rglob("*.json")
    run, _ = store.load(small)
    request = store.Request(SCRIPTS / "ring.py", tuple(run.argv), run.ranks, "gpu")
    run.preset, run.key = "gpu", request.key
    store.write(store.recordings() / request.file, store.dump(run))
    small.unlink()
    recording.record(["plot_ring"])
    assert small.is_file()


def test_a_lesson_that_fails_keeps_its_recordings(gallery, capsys):
    recording.record(["plot_ring"])
    (path,) = store.recordings().rglob("*.json")
    before = path.read_text()
    gallery.write_text(gallery.read_text() + "raise RuntimeError('half way')\n")
    assert recording.record(["plot_ring"]) == 1
    assert path.read_text() == before
    assert "error: topic/plot_ring failed; its recordings are as they were" in capsys.readouterr().err


def test_record_resumes_where_an_earlier_attempt_failed(gallery, monkeypatch):
    from handson import launcher

    whole = gallery.read_text()
    gallery.write_text(whole + "raise RuntimeError('half way')\n")
    assert recording.record(["plot_ring"]) == 1
    gallery.write_text(whole)
    monkeypatch.setattr(launcher, "run_ranks", lambda *a, **k: pytest.fail("the run was made again"))
    assert recording.record(["plot_ring"], resume=True) == 0
    assert len(list(store.recordings().rglob("*.json"))) == 1


def test_an_unknown_lesson_is_named(gallery, capsys):
    assert recording.record(["plot_nothing"]) == 2
    assert "there is no lesson plot_nothing: the gallery has topic/plot_ring" in capsys.readouterr().err


@pytest.mark.alone
def test_status_needs_only_the_standard_library_and_two_seconds(tmp_path):
    root = Path(os.environ["HANDSON_RECORDINGS"])
    root.mkdir()
    (root / "broken.json").write_text('{"format": 1, "log": [')
    began = time.monotonic()
    done = handson("status", "--json", python=(sys.executable, "-S", "-E", "-c", _BARE))
    assert time.monotonic() - began < 2
    assert done.returncode == 0, done.stderr
    states = {entry["run"]: entry["state"] for entry in json.loads(done.stdout)["runs"]}
    assert states["broken.json"] == "corrupt"


# -S and -E: no site-packages, no PYTHONPATH, as a bare Python has it.
_BARE = (
    f"import sys; sys.path.insert(0, {str(KIT)!r}); sys.argv = ['handson', *sys.argv[3:]];"
    "from handson.__main__ import main; sys.exit(main())"
)


def test_status_names_what_changed_and_check_fails_on_it(gallery, capsys, tmp_path):
    from handson.commands.status import status

    script = tmp_path / "own.py"
    script.write_text("from handson import worker\nworker.record('x', y=1)\n")
    gallery.write_text(f"from handson import launch\nlaunch({str(script)!r}, ranks=1)\n")
    recording.record(["plot_ring"])
    # A recording names its script relative to the tutorial's sources; this one's lies in the folder of the test.
    before = Path.cwd()
    try:
        os.chdir(tmp_path)
        assert status(as_json=False, check=True) == 0
        assert "fresh    own.py on 1 rank" in capsys.readouterr().out
        script.write_text(script.read_text() + "# changed\n")
        assert status(as_json=False, check=True) == 1
    finally:
        os.chdir(before)
    out = capsys.readouterr().out
    assert "stale    own.py on 1 rank" in out and "own.py changed" in out and "topic/plot_ring" in out


def test_a_lesson_without_recordings_is_missing(gallery, capsys):
    from handson.commands.status import status

    assert status(as_json=False, check=True) == 1
    assert "missing" in capsys.readouterr().out


def test_doctor_says_what_the_host_can_do():
    done = handson("doctor")
    assert done.returncode == 0, done.stderr
    assert "backends" in done.stdout and "gloo" in done.stdout and "torch" in done.stdout
    assert "applies here" in done.stdout and "An IPv4 address cannot be in brackets" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_reader_who_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m handson doctor | true; echo ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(KIT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_install_takes_what_lessons_need_and_not_the_site():
    from handson.commands.install import needed_by_lessons

    needed = needed_by_lessons((KIT.parent / "requirements.txt").read_text())
    assert "colossalai==0.5.0" in needed and "matplotlib==" in needed
    assert "Sphinx==" not in needed and "pytest==" not in needed
    with pytest.raises(ValueError, match="no section"):
        needed_by_lessons("colossalai==0.5.0")


def test_the_lesson_is_known_from_the_file_that_calls(gallery):
    recording.record(["plot_ring"])
    assert lessons._note_file("topic/plot_ring").is_file()


def test_a_kept_traceback_names_no_folder_of_the_host():
    inside = Path(pytest.__file__).parent / "main.py"
    text = sources.without_folders(
        f'File "{sources.SCRIPTS / "hybrid_parallel" / "train.py"}", line 1\nFile "{inside}", line 2'
    )
    assert text == f'File "hybrid_parallel/train.py", line 1\nFile "{inside.parent.name}/main.py", line 2'


def test_status_names_the_edits_that_keys_pass_over(monkeypatch, capsys):
    from handson.commands.status import status

    edit = harmless.Edit("topic/train.py", "It comes after the last number.", ())
    monkeypatch.setattr(sources, "harmless_edits", lambda: {edit.name: edit})
    status(as_json=False, check=False)
    assert f"keys pass over an edit of {edit.name}: {edit.why}" in capsys.readouterr().out
    status(as_json=True, check=False)
    assert json.loads(capsys.readouterr().out)["harmless_edits"] == {edit.name: edit.why}
