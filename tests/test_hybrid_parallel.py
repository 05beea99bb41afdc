"""`hybrid_parallel/train.py` trains however it is started, says no in one sentence, reads CIFAR-10 by itself."""

import io
import pickle
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from handson import launch
from handson.sources import SCRIPTS

FOLDER = SCRIPTS / "hybrid_parallel"
CONFIG = ("--config", "config.py", "-s")


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")
    monkeypatch.setenv("HANDSON_PRESET", "laptop")
    monkeypatch.syspath_prepend(str(FOLDER))


def refusal(capsys, config: str, *overrides: str, ranks: int) -> str:
    """What the settings alone answer, without starting a rank."""
    import settings

    with pytest.raises(SystemExit) as stop:
        names, _ = settings.read(config, list(overrides))
        settings.check_division(names, ranks)
        settings.settle(names, ranks)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("ranks", "overrides", "sentence"),
    [
        (
            3,
            "TENSOR_PARALLEL_MODE=2d TENSOR_PARALLEL_SIZE=3 PIPELINE_SIZE=1",
            "2D .* square of ranks, which .*=3 is not",
        ),
        (
            3,
            "TENSOR_PARALLEL_MODE=2d TENSOR_PARALLEL_SIZE=4 PIPELINE_SIZE=1",
            "3 ranks cannot be divided into .* multiple of 4",
        ),
        (6, "TENSOR_PARALLEL_MODE=2.5d TENSOR_PARALLEL_SIZE=6 TENSOR_PARALLEL_DEPTH=2", "2.5D .* use 8 or 18"),
        (4, "TENSOR_PARALLEL_MODE=3d TENSOR_PARALLEL_SIZE=4", "3D .* cube of ranks, which .*=4 is not; use 8 or 27"),
        (6, "", "6 ranks cannot be divided into PIPELINE_SIZE=2 x TENSOR_PARALLEL_SIZE=2"),
        (4, "TENSOR_PARALLEL_MODE=4d", "=4d is no mode of tensor parallelism; use 1d, 2d, 2.5d, 3d or None"),
        (4, "TENSOR_PARALLEL_MODE=None", "TENSOR_PARALLEL_SIZE=2 needs a TENSOR_PARALLEL_MODE"),
        (4, "HIDEN_SIZE=4", "says HIDEN_SIZE, which train.py does not know; did you mean HIDDEN_SIZE?"),
        (4, "FOO=4", "says FOO, which train.py does not know; the tutorial's config.py names all that it knows"),
        (4, "frob", "frob is no setting; write KEY=value"),
        (4, "BATCH_SIZE=many", "BATCH_SIZE='many', which is not of type int"),
        (4, "STEPS=0", "STEPS=0, which must be 1 or more"),
        (4, "BATCH_SIZE=10", "BATCH_SIZE=10 is not divisible by 4, as .* with 4 micro-batches needs"),
        (4, "NUM_HEADS=1", "NUM_HEADS=1 is not divisible by 2, as 1d tensor parallelism over 2 ranks needs"),
        (4, "HIDDEN_SIZE=66", "HIDDEN_SIZE=66 is not divisible by 4, as NUM_HEADS=4 needs"),
        (4, "IMG_SIZE=30", "IMG_SIZE=30 is not divisible by 8, as PATCH_SIZE=8 needs"),
        (20, "PIPELINE_SIZE=10 BATCH_SIZE=80", "PIPELINE_SIZE=10 is more than the 7 layers of this model"),
        (4, "OPTIMIZER=lion", "OPTIMIZER=lion is not known; use adamw or sgd"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(ranks, overrides, sentence, capsys):
    assert re.search(sentence, refusal(capsys, "config.py", *overrides.split(), ranks=ranks))


def test_a_configuration_file_is_refused_by_name(tmp_path, capsys):
    assert refusal(capsys, "nowhere.py", ranks=4).startswith("there is no configuration file nowhere.py")
    own = (FOLDER / "config.py").read_text()
    cases = {
        "typo.py": (
            own + "\nBATCH_SISE = 4\n",
            "typo.py says BATCH_SISE, which train.py does not know; did you mean BATCH_SIZE?",
        ),
        "short.py": (own.replace("\nSEED = 1024\n", "\n"), "short.py does not say SEED"),
        "broken.py": ("HIDDEN_SIZE = (", "broken.py cannot be read: SyntaxError"),
        "gpu.py": (own + "\nGPU['DEPHT'] = 2\n", "says DEPHT, which train.py does not know; did you mean DEPTH?"),
    }
    for name, (text, sentence) in cases.items():
        (tmp_path / name).write_text(text)
        assert sentence in refusal(capsys, str(tmp_path / name), ranks=4)


def test_refusals_come_before_anything_heavy_is_imported():
    """A mistake is answered in well under the ten seconds that importing Colossal-AI takes."""
    code = (
        "import sys; sys.argv = ['train.py', '--config', 'config.py', '-s', 'PIPELINE_SIZE=3']\n"
        "try: import train; train.main()\n"
        "except SystemExit: print(sorted({'torch', 'colossalai', 'titans'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr.startswith("error: 1 rank cannot be divided into PIPELINE_SIZE=3 x TENSOR_PARALLEL_SIZE=2")


@pytest.mark.ranks
def test_every_rank_ends_when_the_input_is_refused():
    run = launch(
        "hybrid_parallel/train.py", "--config", "config.py", ranks=2, preset="laptop", quiet=True, expect_failure=True
    )
    assert run.error.startswith("one of the arguments -s/--synthetic --data is required; usage: train.py")


@pytest.mark.ranks
@pytest.mark.parametrize("command", ["colossalai run --nproc_per_node 2", "torchrun --nproc_per_node 2", "python"])
def test_it_trains_however_it_is_started(command):
    starter, *options = command.split()
    pipeline = 2 if options else 1
    overrides = ["STEPS=8", f"PIPELINE_SIZE={pipeline}", "TENSOR_PARALLEL_SIZE=1"]
    done = subprocess.run(
        [str(Path(sys.executable).parent / starter), *options, "train.py", *CONFIG, *overrides],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [float(loss) for loss in re.findall(r"^step +\d+/8   loss ([\d.]+)   [\d.e+]+ ms$", done.stdout, re.M)]
    assert len(losses) == 8 and losses[0] > 2 > 1 > losses[-1]
    assert f"data 1 x pipeline {pipeline} x tensor 1" in done.stdout
    assert "Warning" not in done.stderr and "\x1b" not in done.stdout


@pytest.mark.ranks
def test_measuring_records_time_memory_and_communication_of_each_rank():
    run = launch("hybrid_parallel/train.py", *CONFIG, "--measure", ranks=4, preset="laptop", quiet=True)
    (time,) = run.rows("step_time")
    assert time["rank"] == 0 and len(time["all_ms"]) == 3 and time["warmup"] == 1
    assert time["images_per_second"] == pytest.approx(16 / time["median_ms"] * 1e3)
    for memory in run.rows("memory"):
        held = run.value("parameters_total", "bytes", rank=memory["rank"])
        assert memory["parameter_bytes"] == memory["gradient_bytes"] == held
        assert memory["optimizer_bytes"] == pytest.approx(2 * held, rel=0.01)  # AdamW keeps two numbers for each
        assert memory["peak_bytes"] > 4 * held + memory["activation_bytes"] / 2
    counted = {(row["collective"], row["group"]): row for row in run.value("communication", "rows")}
    # Stage 0 sends 4 micro-batches of 4 x 17 x 64 floats, half on each tensor-parallel rank, and 3 small headers.
    sent = counted["send", "pipeline"]
    assert (sent["calls"], sent["group_size"]) == (7, 2)
    assert 4 * 4 * 17 * 64 * 4 / 2 < sent["bytes"] < 4 * 4 * 17 * 64 * 4 / 2 + 100
    # Each of its two blocks: two all-reduces forward and two backward, for each micro-batch.
    assert counted["all_reduce", "tensor"]["calls"] == 2 * 4 * 4


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small archive in CIFAR-10's format: five files of four images each."""
    import images

    path = tmp_path / images.CIFAR10_ARCHIVE
    with tarfile.open(path, "w:gz") as tar:
        for number in range(1, 6):
            data = np.arange(4 * 3072, dtype=np.uint8).reshape(4, 3072)
            content = pickle.dumps({b"data": data + np.uint8(number), b"labels": [number, 1, 2, 3]})
            member = tarfile.TarInfo(f"cifar-10-batches-py/data_batch_{number}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_cifar10_is_read_from_its_archive_and_cut_for_the_data_parallel_ranks(archive, monkeypatch):
    import images
    import settings
    from sharding import Mesh

    pixels, labels = images.read_cifar10(archive)
    assert pixels.shape == (20, 3, 32, 32) and labels.tolist()[::4] == [1, 2, 3, 4, 5]
    assert pixels[0, 0, 0, :3].tolist() == [1, 2, 3]

    monkeypatch.setattr(images, "_archive", lambda folder, mesh: archive)
    names, _ = settings.read("config.py", ["BATCH_SIZE=8", "IMG_SIZE=64", "PIPELINE_SIZE=1", "TENSOR_PARALLEL_SIZE=1"])
    chosen = settings.settle(names, 2)
    axes = {"pipeline": 1, "tensor": 1}
    ranks = [Mesh(index={"data": i, "pipeline": 0, "tensor": 0}, size={"data": 2} | axes) for i in (0, 1)]
    whole = Mesh(index={"data": 0, "pipeline": 0, "tensor": 0}, size={"data": 1} | axes)
    batches = [images.cifar10("anywhere", chosen, mesh) for mesh in (*ranks, whole)]
    for _ in range(3):  # into the second epoch
        (first, _), (second, _), (both, both_labels) = (next(batch) for batch in batches)
        assert first.shape == second.shape == (4, 3, 64, 64) and both_labels.shape == (8,)
        assert (first == both[:4]).all() and (second == both[4:]).all()
        assert -1 <= both.min() < both.max() <= 1


@pytest.mark.ranks
def test_another_file_in_the_place_of_cifar10_is_refused(archive):
    argv = ("--config", "config.py", "--data", str(archive.parent), "PIPELINE_SIZE=1", "TENSOR_PARALLEL_SIZE=1")
    run = launch("hybrid_parallel/train.py", *argv, ranks=2, preset="laptop", quiet=True, expect_failure=True)
    assert "is not CIFAR-10's archive (MD5 " in run.error and "use -s for synthetic images" in run.error
