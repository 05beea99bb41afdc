"""The playground: plans for meshes that this host does not have, through the kit and on the command line."""

from __future__ import annotations

import csv
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from handson import launch, sources

FOLDER = sources.SCRIPTS / "auto_parallel"
PLAN = "auto_parallel/plan.py "
GIB = 1 << 30


@pytest.fixture
def modules(monkeypatch):
    """plan.py's light modules, as plan.py imports them: from its own folder, without torch."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import plan_machines
    import plan_options

    return plan_machines, plan_options


def here(arguments: str, **more):
    return launch(PLAN + arguments, preset="laptop", quiet=True, **more)


def handson(*words: str, cwd: Path):
    environment = {**os.environ, "PYTHONPATH": str(sources.SCRIPTS), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "handson", *words], capture_output=True, text=True, env=environment, cwd=cwd, timeout=240
    )


# --- what was asked


def test_quantities_are_read_with_their_units(modules):
    machines, _ = modules
    assert machines.size("80GiB", "") == 80 * GIB and machines.size("1.5TB", "") == 1.5e12
    assert machines.bandwidth("450GB/s") == 450e9
    assert machines.bandwidth("400Gb/s") == machines.bandwidth("50GB/s"), "a network is sold in bits"
    assert machines.flops("495TFLOPS") == machines.flops("495TFLOP/s") == 495e12
    assert machines.latency("10us") == pytest.approx(1e-5) and machines.latency("0s") == 0
    assert machines.mesh("2x4") == (2, 4) and machines.mesh("8") == (1, 8)


def test_one_host_has_one_kind_of_link_and_more_hosts_have_two(modules):
    machines, _ = modules
    h200 = machines.HARDWARE["h200"]
    assert h200.links((2, 4)) == [h200.inside, h200.inside]
    assert h200.links((4, 8)) == [h200.between, h200.inside]


def test_every_hardware_profile_says_where_its_figures_are_from(modules):
    machines, _ = modules
    for profile in machines.HARDWARE.values():
        assert f"{profile.flops / 1e12:g} TFLOP/s: " in profile.sources["compute"]
        assert profile.sources["memory"].startswith(f"{profile.memory_bytes / 1e9:g} GB: ")
        assert (
            f"NVLink, {2 * profile.inside[0] / 1e9:g} GB/s in both directions: "
            in profile.sources["link within a host"]
        )
        between = profile.sources["link between hosts"].split(" for each GPU: ")[0]
        assert machines.bandwidth(between.replace(" ", "")) == profile.between[0]


def test_figures_go_to_the_axes_in_order_and_one_figure_to_both(modules):
    _, options = modules
    given = ["mlp", "--mesh", "2x2", "--bandwidth", "50GB/s,450GB/s", "--latency", "20us", "--flops", "2TFLOPS"]
    (case,) = options.read(given, prog="plan", about="").cases
    assert (case.bandwidths, case.flops) == ((50e9, 450e9), 2e12)
    assert case.latencies == pytest.approx((2e-5, 2e-5))


def test_a_sweep_and_several_meshes_and_budgets_are_told_apart_by_their_labels(modules):
    _, options = modules

    def labels(*words):
        asked = options.read(["mlp", *words], prog="plan", about="")
        return [asked.label(case, budget) for case in asked.cases for budget in asked.budgets]

    assert labels() == ["2x4"]
    assert labels("--sweep", "450GB/s,50GB/s") == ["450 GB/s", "50 GB/s"]
    assert labels("--memory", "none,2GiB") == ["no budget", "2 GiB"]
    assert labels("--mesh", "2x2,2x4", "--sweep", "1GB/s,2GB/s") == [
        "2x2, 1 GB/s", "2x2, 2 GB/s", "2x4, 1 GB/s", "2x4, 2 GB/s",
    ]  # fmt: skip
    assert labels("--mesh", "2x2,2x4", "--memory", "none,2GiB")[1:3] == ["2x2, 2 GiB", "2x4, no budget"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("resnet51", "model resnet51 is unknown: use resnet18, resnet50, resnet152, mlp, gpt-block"),
        ("mlp --mesh 2y4", "--mesh 2y4 is no mesh: write its sizes with an x between them, such as 2x4 or 8"),
        ("mlp --mesh 2x2x2", "--mesh 2x2x2 has 3 axes: the solver's strategies know at most two, such as 2x4"),
        ("mlp --mesh 1", "--mesh 1 has 1 devices: a plan needs two or more"),
        ("mlp --batch 30", "--batch 30 is not divisible by the 8 devices of the 2x4 mesh: use a multiple of 8, such"),
        ("mlp --batch 0", "--batch 0 is not divisible by"),
        ("resnet50 --size 16", "--size 16 is too small for resnet50: side of an image, at least 32"),
        ("mlp --memory 3XB", "--memory 3XB cannot be read: write a number above 0 with its unit, such as 80GiB"),
        ("mlp --bandwidth 3,4", "--bandwidth 3 cannot be read: write a number above 0 with its unit, such as 400GB/s"),
        ("mlp --bandwidth 1GB/s,1GB/s,1GB/s", "--bandwidth has 3 figures: give one, or one for each axis"),
        ("mlp --sweep 1GB/s,", "--sweep '1GB/s,' has an empty place"),
        ("mlp --latency 3", "--latency 3 is no time: write it like 10us, 0.5ms or 0s"),
        ("mlp --flops 0TFLOPS", "--flops 0TFLOP/s cannot be read"),
        ("mlp --hardware tpu", "--hardware tpu is unknown: use h200, h100, a100"),
        ("mlp --loader some", "--loader some is unknown: use replicated, distributed"),
        ("mlp --gap 1", "--gap is a fraction from 0 to below 1"),
        ("mlp --csv no/such/plan.csv", "--csv no/such/plan.csv is in a folder that does not exist; make it, or"),
        ("mlp --csv .", "--csv . is a folder; name a file in it"),
        ("mlp --frob", "unrecognized arguments: --frob; --help lists the options"),
        ("", "the following arguments are required: model; --help lists the options"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_exit_code_2(modules, capsys, words, says):
    _, options = modules
    with pytest.raises(SystemExit) as end:
        options.read(words.split(), prog="plan", about="")
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.startswith(f"error: {says}") and said.count("\n") == 1


def test_a_slip_is_answered_without_loading_torch(tmp_path):
    done = handson("plan", "resnet50", "--mesh", "2x2x2", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: --mesh 2x2x2 has 3 axes") and not done.stdout
    code = "import plan, sys\ntry:\n    plan.main(['x'])\nfinally:\n    print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": f"{sources.SCRIPTS}:{FOLDER}"}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == "False\n"


# --- what is solved


def test_the_solver_finds_megatrons_split_of_two_linear_layers():
    run = here("mlp --mesh 2x2 --loader replicated")
    nodes = {row["name"]: row for row in run.rows("node")}
    assert nodes["linear"]["strategy"] == "RS01 = RR x RS01" and nodes["linear_1"]["strategy"] == "RR = RS01 x S01R"
    assert nodes["linear"]["weight"]["sharding"] == ["S01", "R"], "columns, which PyTorch stores as rows"
    assert not run.rows("edge"), "nothing is sent between the two"
    plan = run.rows("plan")[0]
    # One all-reduce forward and one backward, of 2048 x 4096 fp32 over 4 devices at 450 GB/s.
    wire = 2 * (2 * 3 / 4 * 2048 * 4096 * 4 / 450e9 + 10e-6)
    assert plan["communication_ms"] == pytest.approx(1e3 * wire, rel=1e-3)
    assert plan["objective_ms"] == pytest.approx(plan["solver_objective_ms"], rel=1e-6)
    assert plan["status"] == "optimal"


def test_an_impossible_budget_is_refused_with_the_least_that_would_do_and_several_budgets_go_on():
    refused = here("mlp --mesh 2x2 --memory 100MiB", expect_failure=True)
    assert refused.error.startswith("no plan fits within 0.0977 GiB a device on a 2x2 mesh: every plan needs at least")
    least = here("mlp --mesh 2x2 --memory none,890MiB,100MiB --brief")
    free, tight, impossible = least.rows("plan")
    assert f"{free['least_bytes'] / GIB:.3g} GiB" in refused.error
    assert free["memory_bytes"] > 890 * 2**20 >= tight["memory_bytes"] >= free["least_bytes"]
    assert tight["objective_ms"] > free["objective_ms"]
    assert impossible["status"] == "infeasible" and impossible["objective_ms"] is None
    assert not least.rows("node")
    assert f"{impossible['plan']}: no plan fits; every plan needs at least" in "\n".join(least.log)


def test_a_slower_link_changes_the_plan_and_never_makes_it_cheaper():
    run = here("gpt-block --mesh 2x4 --batch 8 --sweep 450GB/s,10GB/s --brief")
    fast, slow = run.rows("plan")
    assert fast["layers"] != slow["layers"]
    assert fast["objective_ms"] < slow["objective_ms"] < slow["kept_ms"]
    assert fast["kept_ms"] == fast["objective_ms"]


PROBE = """
import sys
sys.path.insert(0, {folder!r})
import torch
import networks, plan_ilp, plan_models, solver
from handson import repairs, worker
from handson.repairs import auto_plan, noise

repairs.apply(noise)
machine = solver.Machine(2e14, (2e10, 4e11), (1e-5, 1e-5))
with torch.device("meta"):
    mlp, rows = networks.MLP(256), {{"x": torch.empty(64, 256)}}
try:
    solver.Search(mlp, rows, (2, 2), machine)
except solver.Untraceable as error:
    worker.record("gelu", text=str(error))


def products_on_a_line():
    search = solver.Search(*plan_models.MODELS["gpt-block"].build(8, 128), (1, 4), machine)
    products = [vector for vector in search.strategies if vector.node.name.startswith("matmul")]
    outputs = [[strategy.output_sharding_specs.popitem()[1] for strategy in vector] for vector in products]
    return [[str(spec.sharding_sequence) for spec in specs] for specs in outputs]


auto_plan.REPAIRS[0].patch()
worker.record("line", when="before", shards=products_on_a_line())
repairs.apply(noise, auto_plan)
worker.record("line", when="after", shards=products_on_a_line())
searches = {{
    "mlp": solver.Search(mlp, rows, (2, 2), machine),
    "resnet18": solver.Search(*plan_models.MODELS["resnet18"].build(64, 64), (2, 2), machine),
}}
for name, search in searches.items():
    problem = plan_ilp.problem(search)
    free = search.solve().summary
    budgets = [None, (problem.least_memory() + free["memory_bytes"]) / 2, problem.least_memory()]
    for budget in budgets:
        ours = plan_ilp.solve(search, budget, of=problem).summary
        theirs = search.solve(budget).summary
        worker.record("both", model=name, budget=budget, ours=ours, theirs=theirs)
    try:
        plan_ilp.solve(search, 0.99 * problem.least_memory(), of=problem)
    except solver.Infeasible as error:
        worker.record("impossible", model=name, text=str(error))
worker.record("alone", group=torch.distributed.is_initialized(), cuda=torch.cuda.is_initialized())
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """One job that solves small models with upstream's programme and with ours."""
    folder = tmp_path_factory.mktemp("probe")
    script = folder / "probe.py"
    script.write_text(PROBE.format(folder=str(FOLDER)))
    with pytest.MonkeyPatch.context() as patch:
        # The script's key does not cover the modules that it takes from another folder: never read an old run.
        patch.setenv("HANDSON_RUNS", "live")
        patch.setenv("HANDSON_BUILD", str(folder / "build"))
        return launch(str(script), preset="laptop", quiet=True)


def test_our_programme_has_the_optimum_of_upstreams_with_and_without_a_budget(probe):
    pairs = probe.rows("both")
    assert [row["model"] for row in pairs] == ["mlp"] * 3 + ["resnet18"] * 3
    for row in pairs:
        assert row["ours"]["objective_ms"] == pytest.approx(row["theirs"]["objective_ms"], rel=1e-6), row["model"]
        assert row["ours"]["status"] == row["theirs"]["status"] == "optimal"
        if row["budget"]:
            assert row["ours"]["memory_bytes"] <= row["budget"] * (1 + 1e-9)
    free, half, least = (row["ours"]["objective_ms"] for row in pairs[3:])
    assert free <= half <= least


def test_ours_has_fewer_constraints_under_a_budget(probe):
    row = next(row for row in probe.rows("both") if row["model"] == "resnet18" and row["budget"])
    assert row["ours"]["constraints"] < row["theirs"]["constraints"]


def test_below_the_least_memory_there_is_no_plan(probe):
    for row in probe.rows("impossible"):
        assert "on a 2x2 mesh: every plan needs at least" in row["text"]
    assert len(probe.rows("impossible")) == 2


def test_planning_needs_neither_a_process_group_nor_a_gpu(probe):
    assert probe.ranks == 1 and probe.rows("alone")[0] == {"rank": 0, "kind": "alone", "group": False, "cuda": False}


def test_without_the_repair_gelu_has_no_strategy(probe):
    assert "GELU'> not found in the operator registry" in probe.rows("gelu")[0]["text"]
    assert probe.rows("both", 0)[0]["model"] == "mlp", "and with it the same network is planned"


def test_without_the_repair_no_batched_product_is_split_over_a_line_of_devices(probe):
    before, after = (row["shards"] for row in probe.rows("line"))
    assert len(before) == len(after) == 2, "scores, and the mixture of values"
    for strategies in before:
        assert not any("S1" in cut for cut in strategies), strategies
    for strategies in after:
        assert any("S1" in cut for cut in strategies), strategies


# --- the command


def test_resnet_50_is_planned_by_one_command_within_a_minute_and_written_as_csv(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = handson("plan", "resnet50", "--mesh", "2x4", "--csv", "plan.csv", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Processor time: what the clock says depends on who else uses this machine.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
    assert "53 x (S01R = S01R x RR), 1 x (RR = RR x RR); optimal" in done.stdout
    assert "tracing" in done.stderr and "solving" in done.stderr
    with (tmp_path / "plan.csv").open() as file:
        nodes = {row["name"]: row for row in csv.DictReader(file)}
    assert len(nodes) == 180
    assert nodes["layer1_0_conv1"]["strategy"] == "S01R = S01R x RR"
    assert nodes["layer1_0_conv1"]["weight_shape"] == "64 64 1 1"
    edges = list(csv.DictReader((tmp_path / "plan_edges.csv").open()))
    assert all(float(edge["ms"]) > 0 for edge in edges)


def test_the_command_says_what_it_can_do(tmp_path):
    done = handson("plan", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "usage: handson plan" in done.stdout
    for word in ("gpt-block", "--sweep", "TF32, dense, 494.7 TFLOP/s"):
        assert word in done.stdout
