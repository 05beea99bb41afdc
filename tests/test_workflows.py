"""The workflows of .github: valid, safe (checked by two tools), and calling only what this repository has."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
BIN = Path(sys.executable).parent


def jobs():
    return [
        pytest.param(job, id=f"{file.stem}-{name}")
        for file in FILES
        for name, job in yaml.safe_load(file.read_text())["jobs"].items()
    ]


def read(name):
    workflow = yaml.safe_load((FOLDER / name).read_text())
    # YAML 1.1 reads the key `on` as true.
    return workflow | {"on": workflow[True]}


def steps(job, key):
    return [step[key] for step in job["steps"] if key in step]


def test_there_are_two():
    assert [file.name for file in FILES] == ["pull-request.yml", "site.yml"]


def test_each_fits_githubs_own_schema():
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *FILES]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout


def test_the_schema_refuses_a_workflow_that_is_none(tmp_path):
    broken = tmp_path / "broken.yml"
    broken.write_text((FOLDER / "site.yml").read_text().replace("runs-on:", "run-on:"))
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", broken]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 1


def zizmor(path):
    command = [BIN / "zizmor", "--offline", "--persona=pedantic", "--no-progress", path]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_zizmor_finds_no_weakness():
    checked = zizmor(FOLDER)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("is_now", "was", "found"),
    [
        (r"checkout@\w{40}", "checkout@v6", "unpinned-uses"),
        (r"permissions: \{\}", "permissions: write-all", "excessive-permissions"),
        ("nox -s lint", "echo ${{ github.event.pull_request.title }}", "template-injection"),
        (r"\n +with:\n +persist-credentials: false", "", "artipacked"),
    ],
)
def test_zizmor_would_find_a_weakness(tmp_path, is_now, was, found):
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    text, changed = re.subn(is_now, was, (FOLDER / "pull-request.yml").read_text())
    assert changed
    (folder / "weak.yml").write_text(text)
    checked = zizmor(folder)
    assert checked.returncode != 0 and found in checked.stdout


@pytest.mark.parametrize("job", jobs())
def test_each_job_is_bounded_and_has_the_least_rights(job):
    assert 0 < job["timeout-minutes"] <= 180
    rights = job["permissions"]
    assert rights in ({"contents": "read"}, {"pages": "write", "id-token": "write"})
    for action in steps(job, "uses"):
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action), action


@pytest.mark.parametrize("job", jobs())
def test_each_command_is_shell_and_calls_sessions_tests_and_files_that_exist(job):
    tree = ast.parse((ROOT / "noxfile.py").read_text())
    sessions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list}
    for script in steps(job, "run"):
        assert subprocess.run(["bash", "-n"], input=script, text=True, timeout=10).returncode == 0
        assert set(re.findall(r"nox -s (\w+)", script)) <= sessions
        for path in re.findall(r"\b(?:tests|docs)/[\w/.]+", script):
            assert (ROOT / path).exists(), path


def test_pull_requests_stay_on_githubs_hosts_and_use_recordings():
    workflow = read("pull-request.yml")
    assert set(workflow["on"]) == {"pull_request", "workflow_dispatch"}
    (job,) = workflow["jobs"].values()
    assert job["runs-on"].startswith("ubuntu-") and job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    commands = " ".join(steps(job, "run"))
    assert "build_docs -- --runs=recorded" in commands and "nox -s tests" in commands
    assert workflow["concurrency"]["cancel-in-progress"] is True


def test_the_site_is_built_live_on_a_gpu_host_checked_and_then_published():
    workflow = read("site.yml")
    assert "pull_request" not in workflow["on"] and workflow["on"]["push"]["branches"] == ["main"]
    build, deploy = workflow["jobs"]["build"], workflow["jobs"]["deploy"]
    assert set(build["runs-on"]) >= {"self-hosted", "gpu"} and deploy["needs"] == "build"
    ordered = [step.get("run", step.get("uses")) for step in build["steps"]]
    live, checked, uploaded = (
        next(index for index, text in enumerate(ordered) if word in text)
        for word in ("--runs=live", "tests/test_site.py", "upload-pages-artifact")
    )
    assert live < checked < uploaded
    assert [action.partition("@")[0] for action in steps(deploy, "uses")] == ["actions/deploy-pages"]
