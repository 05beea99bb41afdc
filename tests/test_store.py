"""A run is found again exactly while the code that made it stays the same."""

import dataclasses
import difflib
import json
import shutil

import pytest
from conftest import SCRIPTS
from handson import harmless, launch, lessons, sources, store
from handson.run import Run


@pytest.fixture
def script(tmp_path):
    """A training script with a module and a config beside it, in a folder of its own."""
    folder = tmp_path / "topic"
    folder.mkdir()
    (folder / "train.py").write_text(
        "import sys\nimport model\nfrom handson import worker\n\n\ndef go():\n"
        "    worker.log('argv', *sys.argv[1:])\n    worker.record('answer', value=model.answer())\n\n\ngo()\n"
    )
    (folder / "model.py").write_text("def answer():\n    return 42\n")
    (folder / "other.py").write_text("unrelated = 1\n")
    (folder / "config.py").write_text("SIZE = 1\n")
    return folder / "train.py"


def record(script, *argv, **changes) -> tuple[store.Request, Run]:
    """Run live and keep the result as if a GPU host had recorded it."""
    run = launch(str(script), *argv, ranks=1, preset="laptop", quiet=True)
    request = store.Request(script, argv, 1, "gpu")
    made = {**run.provenance, "hardware": "1 × NVIDIA H200", "backend": "NCCL", "date": "2026-11-22T00:00:00+00:00"}
    run = dataclasses.replace(run, preset="gpu", key=request.key, provenance=made, **changes)
    store.write(store.recordings() / request.file, store.dump(run))
    return request, run


def test_the_key_follows_imports_config_arguments_ranks_and_preset(script):
    request = store.Request(script, ("--config", "config.py"), 2, "laptop")
    assert list(request.files) == ["config.py", "handson/__init__.py", "handson/worker.py", "model.py", "train.py"]
    before = request.key
    assert dataclasses.replace(request, ranks=4).key != before
    assert dataclasses.replace(request, preset="gpu").key != before
    assert dataclasses.replace(request, argv=("--config", "config.py", "-s")).key != before
    (script.parent / "other.py").write_text("unrelated = 2\n")
    assert request.key == before
    (script.parent / "model.py").write_text("def answer():\n    return 43\n")
    assert request.key != before


def test_the_key_follows_imports_into_folders_with_and_without_an_init_file(script):
    for name in ("bare/deep/inner.py", "whole/__init__.py", "whole/part.py", "torch.py"):
        (script.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (script.parent / name).write_text("")
    script.write_text("import torch.nn.functional\nimport bare.deep.inner\nfrom whole import part, no_module\n")
    assert set(sources.files_of(script, ())) == {"__init__.py", "inner.py", "part.py", "torch.py", "train.py"}


BEFORE = "import sys\n\nSTEPS = 3\n\n\ndef go():\n    print(STEPS)\n\n\ngo()\n"
AFTER = BEFORE.replace("import sys\n", "import os\nimport other\nimport sys\n").replace(
    "\ngo()\n", "\ngo()\nos._exit(0)\n"
)


def edit_of(name: str, context: int = 3) -> str:
    lines = (text.splitlines(keepends=True) for text in (BEFORE, AFTER))
    return "It comes after\nthe last number.\n\n" + "".join(difflib.unified_diff(*lines, name, name, n=context))


@pytest.mark.parametrize("context", (0, 1, 3))
def test_a_key_passes_over_the_lines_of_a_harmless_edit_and_no_others(tmp_path, context):
    (tmp_path / "topic").mkdir()
    (tmp_path / "topic" / "train.py.diff").write_text(edit_of("topic/train.py", context))
    (edit,) = harmless.edits(tmp_path).values()
    assert edit.name == "topic/train.py" and edit.why == "It comes after the last number."
    assert edit.undone(AFTER) == BEFORE
    assert edit.undone(AFTER.replace("= 3", "= 4")) != BEFORE
    assert edit.undone(AFTER.replace("_exit(0)", "_exit(1)")) == AFTER.replace("_exit(0)", "_exit(1)")
    assert edit.undone(BEFORE) == BEFORE  # the edit is not there, so there is nothing to pass over


def test_a_run_is_found_again_after_a_harmless_edit_of_its_script(script, monkeypatch):
    script.write_text(BEFORE)
    before = store.Request(script, (), 1, "gpu").key
    (script.parent / "train.py.diff").write_text(edit_of("train.py"))
    monkeypatch.setattr(sources, "harmless_edits", lambda: harmless.edits(script.parent))
    script.write_text(AFTER)
    assert store.Request(script, (), 1, "gpu").key == before
    (script.parent / "other.py").write_text("imported = 'by the edit alone'\n")
    assert store.Request(script, (), 1, "gpu").key == before
    script.write_text(AFTER.replace("= 3", "= 4"))
    assert store.Request(script, (), 1, "gpu").key != before


def test_every_harmless_edit_is_that_of_the_source_and_stands_on_the_page():
    page = (sources.CHECKOUT / "docs" / "how_it_works.md").read_text()
    for edit in sources.harmless_edits().values():
        source = (sources.SCRIPTS / edit.name).read_text()
        assert edit.why and edit.undone(source) != source, f"{edit.name}: the diff is not of this source; make it again"
        assert f"handson/harmless_edits/{edit.name}.diff" in page


def test_the_key_ignores_the_lesson_side_of_the_kit():
    files = sources.files_of(sources.find_script("hybrid_parallel/train.py"), ("--config", "config.py"))
    assert {"handson/worker.py", "hybrid_parallel/train.py", "hybrid_parallel/config.py"} <= set(files)
    lesson_side = {f"handson/{name}.py" for name in ("launcher", "store", "run", "ranks", "watching")}
    assert not lesson_side & set(files)
    assert not [name for name in files if name.startswith("handson/show")]


def test_a_second_launch_is_read_from_the_cache_until_the_code_changes(script):
    assert launch(str(script), ranks=1, quiet=True).way == "live"
    again = launch(str(script), ranks=1, quiet=True)
    assert again.way == "cached" and again.value("answer", "value") == 42
    (script.parent / "model.py").write_text("def answer():\n    return 43\n")
    changed = launch(str(script), ranks=1, quiet=True)
    assert changed.way == "live" and changed.value("answer", "value") == 43


def test_a_run_without_a_repair_is_another_run(script, monkeypatch):
    assert launch(str(script), ranks=1, quiet=True).way == "live"
    without = launch(str(script), ranks=1, quiet=True, without=("clip",))
    assert without.way == "live" and without.command == "HANDSON_WITHOUT=clip python train.py"
    monkeypatch.setenv("HANDSON_WITHOUT", "clip")
    assert launch(str(script), ranks=1, quiet=True).way == "cached"
    assert launch(str(script), ranks=1, quiet=True).key == without.key


def test_a_run_of_other_versions_is_not_this_hosts(script, monkeypatch):
    launch(str(script), ranks=1, quiet=True)
    monkeypatch.setattr("handson.provenance.host_fingerprint", lambda: {"torch": "other"})
    assert launch(str(script), ranks=1, quiet=True).way == "live"


def test_a_host_without_gpus_shows_the_fresh_recording(script):
    record(script, data=[{"rank": 0, "kind": "answer", "value": 7}])
    run = launch(str(script), ranks=1, quiet=True)
    assert run.way == "recorded" and run.value("answer", "value") == 7
    assert "Recorded on 1 × NVIDIA H200" in run.provenance_line() and run.note == ""


def test_a_stale_recording_is_never_shown_as_current(script, monkeypatch):
    request, _ = record(script, data=[{"rank": 0, "kind": "answer", "value": 7}])
    (script.parent / "model.py").write_text("def answer():\n    return 43\n")
    run = launch(str(script), ranks=1, quiet=True)
    assert run.way == "live" and run.value("answer", "value") == 43
    assert "on 1 × NVIDIA H200 of 2026-11-22 is stale: model.py changed since" in run.note
    monkeypatch.setenv("HANDSON_RUNS", "recorded")
    with pytest.raises(store.StoreError, match=r"train.py on 1 rank` .* is stale: model.py changed since"):
        launch(str(script), ranks=1, quiet=True)
    assert store.load(store.recordings() / request.file)  # and nothing was lost


def test_live_and_recorded_force_one_way(script, monkeypatch):
    record(script)
    monkeypatch.setenv("HANDSON_RUNS", "live")
    assert launch(str(script), ranks=1, quiet=True).way == "live"
    monkeypatch.setenv("HANDSON_RUNS", "recorded")
    assert launch(str(script), ranks=1, quiet=True).way == "recorded"
    with pytest.raises(store.StoreError, match=r"there is no recording of `train\.py -s on 1 rank`"):
        launch(str(script), "-s", ranks=1, quiet=True)
    monkeypatch.setenv("HANDSON_RUNS", "sometimes")
    with pytest.raises(store.StoreError, match="HANDSON_RUNS=sometimes is no policy: use auto, live, recorded"):
        launch(str(script), ranks=1, quiet=True)


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda text: text[: len(text) // 2], "truncated or corrupt"),
        (lambda text: "", "truncated or corrupt"),
        (lambda text: text.replace('"value": 7', '"value": 8'), "does not match its own digest"),
        (lambda text: text.replace('"format": 1', '"format": 99'), "has format 99, not 1"),
    ],
)
def test_a_damaged_recording_is_named_and_refused(script, damage, says):
    request, _ = record(script, data=[{"rank": 0, "kind": "answer", "value": 7}])
    path = store.recordings() / request.file
    path.write_text(damage(path.read_text()))
    with pytest.raises(store.StoreError, match=says) as error:
        launch(str(script), ranks=1, quiet=True)
    assert path.name in str(error.value) and "python -m handson record" in str(error.value)


def test_a_recording_has_one_line_a_row_and_survives_a_round_trip(script):
    request, run = record(script, data=[{"rank": r, "kind": "answer", "value": 0.1 * r} for r in range(3)])
    text = (store.recordings() / request.file).read_text()
    assert sum('"kind": "answer"' in line for line in text.splitlines()) == 3
    again, _ = store.load(store.recordings() / request.file)
    assert again.data == run.data and store.dump(again) == text


def test_a_full_disk_leaves_the_old_recording_whole(tmp_path, monkeypatch):
    target = tmp_path / "run.json"
    store.write(target, "old\n")

    class FullDisk:
        def __init__(self, *args, **kwargs):
            self.name = str(tmp_path / "x.part")
            (tmp_path / "x.part").touch()

        def __enter__(self):
            return self

        def __exit__(self, *args):
            return False

        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", FullDisk)
    with pytest.raises(OSError, match="No space left"):
        store.write(target, "new\n")
    assert target.read_text() == "old\n" and sorted(p.name for p in tmp_path.glob("*.part")) == []


def test_a_lesson_is_current_until_a_file_of_its_runs_changes(script, monkeypatch):
    monkeypatch.setenv("HANDSON_LESSON", "topic/plot_x")
    lessons.start("topic/plot_x")
    assert not lessons.is_current("topic/plot_x")
    launch(str(script), ranks=1, quiet=True)
    monkeypatch.chdir(script.parent)
    monkeypatch.setattr(sources, "SCRIPTS", script.parent)
    note = json.loads(lessons._note_file("topic/plot_x").read_text())
    assert [entry["argv"] for entry in note["runs"]] == [[]]
    assert lessons.is_current("topic/plot_x")
    monkeypatch.setenv("HANDSON_RUNS", "live")
    assert not lessons.is_current("topic/plot_x")
    monkeypatch.delenv("HANDSON_RUNS")
    (script.parent / "model.py").write_text("def answer():\n    return 43\n")
    assert not lessons.is_current("topic/plot_x")


def test_how_long_a_run_took_before_is_known_whatever_its_code_was(script):
    request, _ = record(script, seconds=12.5)
    assert store.seconds_before(request) == 12.5
    here = dataclasses.replace(request, preset="laptop")
    assert store.seconds_before(here) == store.load(store.build_folder() / "runs" / here.file)[0].seconds
    (script.parent / "model.py").write_text("def answer():\n    return 43\n")
    assert store.seconds_before(request) == 12.5 and store.recorded(request)[0] is None
    file = store.recordings() / request.file
    file.write_text(file.read_text()[:-20])
    assert store.seconds_before(request) is None
    assert store.seconds_before(dataclasses.replace(request, argv=("another",))) is None


def test_the_cache_is_per_content_not_per_folder(script, tmp_path):
    launch(str(script), ranks=1, quiet=True)
    shutil.copytree(script.parent, tmp_path / "copy")
    assert launch(str(tmp_path / "copy" / "train.py"), ranks=1, quiet=True).way == "cached"


def test_ring_is_where_the_tests_expect_it():
    assert store.Request(SCRIPTS / "ring.py", ("ok",), 4, "laptop").file.name.startswith("ring-ok-x4-laptop-")
