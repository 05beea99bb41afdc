"""The serving lesson's script, the load generator and the image: right answers under load, measured honestly."""

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from handson import launch, store
from handson.run import Run
from handson.show import serving_openapi, serving_plots, serving_tables
from handson.sources import SCRIPTS, files_of

sys.path.append(str(SCRIPTS / "opt"))
from inference import bench_steps, load, served

pytestmark = pytest.mark.alone
FOLDER = SCRIPTS / "opt" / "inference"
ROOT = SCRIPTS.parent


def measured(folder: Path) -> Run:
    """The lesson's run, with 64 clients for eight seconds at its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HANDSON_RUNS", "live")
        patch.setenv("HANDSON_BUILD", str(folder))
        patch.delenv("HANDSON_PRESET", raising=False)
        patch.delenv("HANDSON_TRANSFORMERS5", raising=False)
        return launch("opt/serving_bench.py --text python_reference.txt --hold 8", preset="laptop", quiet=True)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Run:
    """One run for all tests."""
    return measured(tmp_path_factory.mktemp("build"))


def served_by(run: Run, server: str) -> dict[int, dict]:
    return {row["clients"]: row for row in run.rows("load") if row["server"] == server}


@pytest.mark.ranks
@pytest.mark.timeout(900)
def test_sixty_four_clients_lose_no_answer_and_get_only_their_own(bench):
    assert bench.value("questions", "different") > 50, "equal answers would hide that two were exchanged"
    crowd = served_by(bench, "batched")[64]
    assert crowd["seconds"] >= 8 and crowd["requests"] > 64
    assert crowd["right"] == crowd["requests"]
    assert crowd["wrong"] == crowd["mixed"] == crowd["lost"] == crowd["refused"] == 0


@pytest.mark.ranks
@pytest.mark.timeout(900)
def test_every_answer_of_every_load_is_that_of_plain_transformers(bench):
    rows = bench.rows("load") + [row | {"requests": row["answers"]} for row in bench.rows("parity")]
    assert len(rows) == 2 + 5 + 2 and all(row["right"] == row["requests"] > 0 for row in rows)
    engines = {row["engine"]: row for row in bench.rows("engine")}
    assert len(engines) == 3 and all(row["right"] == row["requests"] == 64 for row in engines.values())


@pytest.mark.ranks
@pytest.mark.timeout(900)
def test_batching_answers_three_times_as_many_requests_as_one_at_a_time(bench, tmp_path):
    # A short load has a beginning and an end, where few requests are under way: its mean is well below 32.
    assert served_by(bench, "batched")[32]["mean_batch"] > 8
    assert served_by(bench, "one at a time")[32]["mean_batch"] == 1
    # Server and clients share the cores with whatever else runs: a neighbour may spoil one measurement, not two.
    assert serving_tables.gain(bench) >= 3 or serving_tables.gain(measured(tmp_path)) >= 3


@pytest.mark.ranks
@pytest.mark.timeout(900)
def test_sigterm_lets_the_requests_inside_be_answered(bench):
    drain = bench.rows("drain")[0]
    assert (drain["running"], drain["answers"], drain["exit_code"]) == (8, 8, 0)
    assert [row["exit_code"] for row in bench.rows("server")] == [0, 0]


@pytest.mark.ranks
@pytest.mark.timeout(900)
def test_a_seed_repeats_a_draw_in_any_company(bench):
    seeds = bench.rows("seeds")[0]
    assert seeds["again"] and seeds["crowd"] and seeds["other"]


@pytest.mark.ranks
@pytest.mark.timeout(900)
def test_what_cannot_be_answered_is_recorded_with_its_status(bench):
    found = {row["what"]: row["status"] for row in bench.rows("refusal")}
    assert len(found) == 6 and set(found.values()) == {422, 413} and found["a body of 2 MiB"] == 413


@pytest.mark.ranks
@pytest.mark.timeout(900)
def test_the_engine_that_is_absent_is_named_with_the_reason(bench):
    (absent,) = bench.rows("absent")
    assert absent["engine"] == "transformers 5, continuous batching"
    assert "has transformers 4.51.3" in absent["why"]
    assert "absent: this host" in str(serving_tables.engine_table(bench))


@pytest.mark.ranks
@pytest.mark.timeout(900)
def test_the_model_learned_and_the_page_shows_what_was_measured(bench):
    assert bench.value("fine_tuned", "last") < 0.6 * bench.value("fine_tuned", "first")
    assert "DIFFERENT" not in str(serving_tables.parity_table({"tp 1": bench}))
    table = str(serving_openapi.openapi_table(bench))
    assert "POST /generation" in table and "max_tokens: integer, ≥ 1, ≤ 256, default 64" in table and "406" in table
    assert "The queue is full" in str(serving_openapi.status_table(bench))
    for row in serving_tables.little_rows(bench):
        assert 0.6 < row["counted"] / row["expected"] < 1.1, row
    for row in serving_tables.memory_rows({"tp 1": bench}):
        assert row["counted"] == row["expected"]
    pictures = [serving_plots.timeline(bench), serving_plots.throughput({"tp 1": bench}), serving_plots.latency(bench)]
    assert all(len(picture.alt) > 60 for picture in pictures)
    assert not re.search(r"/tmp/|/home/", json.dumps(bench.data) + "\n".join(bench.log))


def test_the_room_for_keys_and_values_is_read_from_every_recorded_servers_words():
    """A GPU's have more than 999 MiB, which the server writes with a comma."""
    paths = sorted((SCRIPTS.parent / "docs" / "recordings" / "opt").glob("serving_bench-*.json"))
    rows = serving_tables.memory_rows({path.stem: store.load(path)[0] for path in paths})
    assert len(rows) >= 3 and max(row["counted"] for row in rows) > 1000 * 2**20
    assert all(row["counted"] == pytest.approx(row["expected"], rel=0.01) for row in rows)


def test_a_change_of_the_server_makes_the_recording_stale():
    script = SCRIPTS / "opt" / "serving_bench.py"
    files = files_of(script, ["--text", "python_reference.txt"])
    here = {f"opt/inference/{path.name}" for path in FOLDER.glob("*.py")} - {"opt/inference/locustfile.py"}
    assert here <= files.keys()
    assert {"opt/python_reference.txt", "opt/run_clm.py", "opt/models.py", "opt/tokens.py"} <= files.keys()


def reply(question, status=200, text="", seconds=1.0):
    return load.Reply(0, question, 0.0, seconds, status, text, 4)


def test_verdicts_tell_wrong_answers_from_those_of_another_request():
    asked = [load.Question("a", 4, "one"), load.Question("b", 4, "two")]
    replies = [
        reply(0, text="one"),
        reply(0, text="two"),
        reply(0, text="three"),
        reply(1, 406),
        reply(1, 503),
        reply(1, 0),
    ]
    counts = load.Load(2, asked, replies).verdicts()
    assert counts == {"right": 1, "mixed": 1, "wrong": 1, "refused": 1, "lost": 2}


def test_percentiles_are_latencies_that_were_measured():
    asked = [load.Question("a", 4)]
    found = load.Load(1, asked, [reply(0, seconds=second) for second in range(1, 101)])
    assert [found.latency(percent) for percent in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert (found.per_second(), found.tokens_per_second()) == (1.0, 4.0)


def test_questions_differ_and_are_openings_of_what_was_learned():
    asked = load.questions(64, (8, 16))
    learned = load.excerpt(1)
    assert len({question.prompt for question in asked}) == 64
    assert all(question.prompt in learned for question in asked)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--clients 0", "--clients, --seconds, --questions and --max_tokens must be above 0"),
        ("--check", "--check needs --checkpoint DIR, the folder that the server serves"),
        ("--url http://127.0.0.1:9", "no server answers at http://127.0.0.1:9"),
        ("--url http://127.0.0.1:9/", "no server answers at http://127.0.0.1:9 ("),
        ("--check --checkpoint /no/such", "--checkpoint /no/such: there is no such folder"),
        ("--check --checkpoint .", "--checkpoint .: it has no config.json; give a folder that fine-tuning exported"),
        ("--clients many", "invalid int value: 'many'"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_one_sentence(words, says):
    done = subprocess.run(
        [sys.executable, FOLDER / "load.py", *words.split()], capture_output=True, text=True, timeout=60
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and says in line


def test_damaged_weights_are_named_before_anything_is_asked(tmp_path):
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "max_position_embeddings": 16}
    sizes |= {"model_type": "opt", "ffn_dim": 32, "vocab_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    words = ["--check", "--checkpoint", str(tmp_path), "--url", "http://127.0.0.1:9"]
    done = subprocess.run([sys.executable, FOLDER / "load.py", *words], capture_output=True, text=True, timeout=60)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith(f"error: --checkpoint {tmp_path}: model.safetensors is cut short")


def test_a_server_that_cannot_start_is_reported_with_its_words(tmp_path):
    with pytest.raises(served.NotServed, match=r"exit code 2:\n(.*\n)*error: --checkpoint .*missing"):
        with served.serve("opt-tiny", tmp_path / "missing"):
            pass


def test_a_python_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("HANDSON_TRANSFORMERS5", "/nowhere/python")
    with pytest.raises(SystemExit) as stop:
        bench_steps.other_python()
    assert stop.value.code == 2
    assert "HANDSON_TRANSFORMERS5=/nowhere/python cannot be started" in capsys.readouterr().err


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.M)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [tuple(line.split(None, 1)) for line in lines]


def test_the_dockerfile_passes_its_linter():
    program = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    done = subprocess.run([program, FOLDER / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stdout, done.stdout


def test_the_image_runs_as_nobody_listens_and_says_whether_it_is_well():
    found = dict(instructions())
    assert found["FROM"].startswith("python:3") and "slim" in found["FROM"]
    assert int(found["USER"]) > 1000
    assert json.loads(found["ENTRYPOINT"]) == ["python", "opt_fastapi.py"]
    assert found["EXPOSE"] == "7070" and found["VOLUME"] == "/data"
    test = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])
    assert test[0] == "python" and "http://127.0.0.1:7070/health" in test[2]
    ast.parse(test[2])
    settings = " ".join(value for name, value in instructions() if name == "ENV")
    assert "OMP_NUM_THREADS=1" in settings and "OPT_HTTP_HOST=0.0.0.0" in settings
    assert not re.search(r"\b(gcc|g\+\+|build-essential|apt-get)\b", (FOLDER / "Dockerfile").read_text())
    kept = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    for source in re.findall(r"^COPY (\S+)", (FOLDER / "Dockerfile").read_text(), re.M):
        assert f"!{source}" in kept and (ROOT / source).exists()


def test_the_image_listens_on_every_address_by_the_tutorials_own_command(monkeypatch):
    words = [sys.executable, "-c", "import options, sys; print(options.read(sys.argv[1:]).http_host)", "opt-125m"]
    for environment, host in (({"OPT_HTTP_HOST": "0.0.0.0"}, "0.0.0.0"), ({}, "127.0.0.1")):
        done = subprocess.run(
            words,
            cwd=FOLDER,
            env=environment | {"PYTHONPATH": str(SCRIPTS)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.strip() == host, done.stderr


def test_the_image_holds_every_package_that_the_server_imports_and_only_pinned_ones():
    (command,) = (value for name, value in instructions() if name == "RUN" and "--no-deps" in value)
    installed = {
        name.lower().replace("_", "-") for name in command.split()[command.split().index("requirements.txt") + 1 :]
    }
    pins = (ROOT / "requirements.txt").read_text()
    pinned = {name.lower().replace("_", "-") for name in re.findall(r"^([\w.-]+)==", pins, re.M)}
    assert installed <= pinned, installed - pinned
    ours = {path.stem for folder in (FOLDER, FOLDER.parent) for path in folder.glob("*.py")} | {"handson", "inference"}
    server = [path for path in FOLDER.glob("*.py") if path.stem not in ("locustfile", "compare_continuous")]
    distributions = importlib.metadata.packages_distributions()
    for path in [*server, *(FOLDER.parent / f"{name}.py" for name in ("models", "text", "tokens", "hub", "manifest"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for top in {name.partition(".")[0] for name in names} - ours - set(sys.stdlib_module_names) - {"datasets"}:
                needed = {name.lower().replace("_", "-") for name in distributions[top]}
                assert needed & (installed | {"torch"}), f"{path.name} imports {top}"


def test_the_locust_file_asks_the_same_questions():
    tree = ast.parse((FOLDER / "locustfile.py").read_text())
    (taken,) = (node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "load")
    assert all(hasattr(load, alias.name) for alias in taken.names)
