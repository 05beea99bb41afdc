"""Today's modes of sequence parallelism compute what one process computes; each fault shows without its repair."""

from functools import cache
from pathlib import Path

import pytest
from handson import launch, repairs
from handson.repairs import booster_sequence
from handson.run import Run
from handson.show import sequence_modes

pytestmark = pytest.mark.ranks
SCRIPT = "sequence_parallel/modern.py"
LOSS, GRADIENT = 1e-5, 1e-4
# (arguments, ranks) -> the modes that run
DIVISIONS = {
    ("MODEL=bert", 2): ("data", "tensor", "split_gather", "ring"),
    ("MODEL=bert PP=2 MODES=split_gather,ring", 4): ("split_gather", "ring"),
    ("MODEL=llama", 2): (
        "data", "tensor", "split_gather", "ring", "all_to_all", "split_gather+flash", "all_to_all+flash",
    ),
    ("MODEL=llama PP=2 MODES=split_gather,ring,all_to_all", 4): ("split_gather", "ring", "all_to_all"),
    ("MODEL=llama DATA=2 MODES=split_gather,ring,all_to_all", 4): ("split_gather", "ring", "all_to_all"),
    ("MODEL=llama TP=2 MODES=all_to_all", 4): ("all_to_all",),
}  # fmt: skip
# These repairs refuse what cannot be: their sentence, and what upstream does instead.
REFUSED = {"bertringattn", "spmode", "flashattn"}


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")


@cache
def job(arguments: str, ranks: int, without: tuple[str, ...] = (), measure: bool = False, fails: bool = False) -> Run:
    argv = [*arguments.split(), *([] if measure else ["MEASURE=no"])]
    return launch(
        SCRIPT, *argv, ranks=ranks, preset="laptop", quiet=True, without=without, expect_failure=fails, timeout=120
    )


def modes(run: Run) -> dict[str, dict]:
    return {row["way"]: row for row in run.rows("mode", rank=0)}


def loss_difference(run: Run, way: str) -> float:
    return next(row["max_loss_difference"] for row in run.rows("parity", rank=0) if row["way"] == way)


def tokens(run: Run, way: str) -> set[int]:
    return {row["tokens"] for row in run.rows("witness") if row["way"] == way}


@pytest.mark.parametrize("arguments, ranks", DIVISIONS)
def test_every_mode_computes_the_loss_and_all_gradients_of_one_process(arguments, ranks):
    run = job(arguments, ranks)
    found = modes(run)
    assert tuple(way for way, row in found.items() if row["runs"]) == DIVISIONS[arguments, ranks]
    for way in DIVISIONS[arguments, ranks]:
        assert loss_difference(run, way) <= LOSS
        assert found[way]["gradient_difference"] <= GRADIENT and found[way]["wrong"] == 0
        # every parameter was compared; in a pipeline BERT's shared embedding is held, and compared, twice
        expected = 21 if "llama" in arguments else 42 + ("PP=2" in arguments)
        assert found[way]["compared"] == expected
        assert sequence_modes.verdict(run, way) == "equal"


@pytest.mark.parametrize("model", ("bert", "llama"))
def test_a_sequence_parallel_rank_has_its_part_of_the_tokens_and_of_the_heads(model):
    run = job(f"MODEL={model}", 2)
    assert tokens(run, "one process") == tokens(run, "tensor") == {128}
    for way, row in modes(run).items():
        if row["runs"] and row["layout"]["sequence"] > 1:
            assert tokens(run, way) == {64}
            assert {(r["heads"], r["queries"]) for r in run.rows("witness") if r["way"] == way} == {(2, 128)}


def test_bytes_sent_are_those_of_the_formulas_and_all_to_all_sends_least():
    run = job("MODEL=llama MODES=tensor,split_gather,ring,all_to_all", 2, measure=True)
    traffic = {row["way"]: row for row in run.rows("traffic", rank=0)}
    assert list(traffic) == ["tensor", "split_gather", "ring", "all_to_all"]
    for row in traffic.values():
        assert row["counted"] == row["expected"]
    assert traffic["split_gather"]["counted"] == traffic["ring"]["counted"] > traffic["tensor"]["counted"]
    assert traffic["all_to_all"]["counted"] < traffic["tensor"]["counted"] / 3
    peaks = {way: max(row["peak_bytes"] for row in view.rows("memory"))
             for way, view in sequence_modes.ways(run).items()}  # fmt: skip
    assert all(peaks[way] < 0.8 * peaks["one process"] for way in traffic)


def test_rowbias_without_it_each_rank_keeps_its_own_part_of_the_biases_gradients():
    run = job("MODEL=bert MODES=split_gather", 2, without=("rowbias",))
    row = modes(run)["split_gather"]
    assert loss_difference(run, "split_gather") <= LOSS
    assert (row["wrong"], row["gradient_difference"] > 0.5) == (4, True) and row["parameter"].endswith("dense.bias")
    assert modes(job("MODEL=bert", 2))["split_gather"]["wrong"] == 0


def test_ringgather_without_it_the_columns_gradients_come_from_the_wrong_piece():
    run = job("MODEL=llama MODES=ring", 2, without=("ringgather",))
    row = modes(run)["ring"]
    assert loss_difference(run, "ring") <= LOSS
    assert (row["wrong"], row["gradient_difference"] > 0.5) == (10, True)  # q, k, v, gate and up of two layers
    assert modes(job("MODEL=llama", 2))["ring"]["wrong"] == 0


def test_sdpamask_without_it_tokens_see_those_after_them_unless_one_is_padding():
    arguments = "MODEL=llama MODES=split_gather,all_to_all"
    run = job(arguments, 2, without=("sdpamask",))
    for way, row in modes(run).items():
        assert loss_difference(run, way) > 1e-4 and row["wrong"] == row["compared"] == 21
    assert modes(job("MODEL=llama", 2))["all_to_all"]["wrong"] == 0
    for hidden in (job(f"{arguments} PADDING=8", 2, without=("sdpamask",)), job(f"{arguments} ATTENTION=eager", 2)):
        assert all(row["wrong"] == 0 and loss_difference(hidden, way) <= LOSS for way, row in modes(hidden).items())


def test_stagemask_without_it_a_later_stage_fails_and_no_rank_is_left_waiting():
    run = job("MODEL=llama PP=2 MODES=split_gather", 4, without=("stagemask",), fails=True)
    (repair,) = (repair for repair in booster_sequence.REPAIRS if repair.name == "stagemask")
    assert run.error.splitlines()[-1].removeprefix("RuntimeError: ") in repair.symptom
    assert run.seconds < 60


def test_bertring_without_it_the_ring_is_split_gather_under_another_name():
    def sends(without: tuple[str, ...]) -> int:
        run = job("MODEL=bert MODES=ring", 2, without=without, measure=True)
        rows = [part for row in run.rows("communication", rank=0) if row["way"] == "ring" for part in row["rows"]]
        return sum(row["calls"] for row in rows if row["collective"] == "send")

    assert sends(()) == 12 and sends(("bertring",)) == 0  # six linear layers in each of two


def test_bertringattn_without_it_every_rank_computes_every_token():
    run = job("MODEL=bert MODES=ring_attn", 2, without=("bertringattn", "flashattn"))
    assert tokens(run, "ring_attn") == {128} and "divides nothing" in str(sequence_modes.verdict(run, "ring_attn"))
    refused = modes(job("MODEL=bert", 2))["ring_attn"]
    assert not refused["runs"] and refused["message"].startswith("ring_attn divides nothing in BERT")


def test_glooalltoall_exchanges_what_pytorch_before_2_13_cannot():
    run = launch(str(Path(__file__).parent / "scripts" / "gloo_probe.py"), ranks=3, preset="laptop", quiet=True)
    for row in run.rows("exchange"):
        assert row["repaired"] == [[other, row["rank"]] for other in range(3)]
        # the repair is applied exactly where the fault is
        assert (row["plain"] == "Backend gloo does not support alltoall") == row["needed"]
        assert row["needed"] or row["plain"] == row["repaired"]


def test_flashattn_without_it_the_first_forward_fails():
    refused = modes(job("MODEL=llama", 2))["ring_attn"]
    assert not refused["runs"] and refused["message"].startswith("ring_attn needs the package flash-attn")
    run = job("MODEL=llama MODES=ring_attn", 2, without=("flashattn",), fails=True)
    assert "RuntimeError: Flash Attention is not installed." in run.error


def test_sdpakernel_without_it_no_kernel_is_found_on_the_cpu():
    run = job("MODEL=llama MODES=all_to_all+flash", 2, without=("sdpakernel",), fails=True)
    assert "No usable kernel found for FlashAttentionForFloatAndCustomMaskLoader" in run.error


NO_MODE = """
from handson import repairs, worker
from handson.repairs import booster_cpu, booster_sequence, noise
repairs.apply(noise, booster_cpu, booster_sequence)
import colossalai
from colossalai.booster.plugin import HybridParallelPlugin
colossalai.launch_from_torch(verbose=False)
try:
    plugin = HybridParallelPlugin(tp_size=2, pp_size=1, precision="fp32", enable_sequence_parallelism=True)
    modes = [plugin.sequence_parallelism_mode, plugin.shard_config.sequence_parallelism_mode]
except ValueError as refusal:
    modes = [str(refusal)]
worker.record("answer", modes=modes)
"""


def test_spmode_without_it_one_plugin_has_two_modes(tmp_path):
    script = tmp_path / "no_mode.py"
    script.write_text(NO_MODE)

    def answer(without: tuple[str, ...]) -> list[str]:
        run = launch(str(script), ranks=2, preset="laptop", quiet=True, without=without)
        return run.value("answer", "modes")

    assert answer(("spmode",)) == ["all_to_all", "split_gather"]
    (sentence,) = answer(())
    assert sentence.startswith("enable_sequence_parallelism=True needs a sequence_parallelism_mode")


def test_every_repair_of_the_area_is_in_force_and_tested():
    names = {repair.name for repair in booster_sequence.REPAIRS}
    assert names <= set(job("MODEL=llama", 2).value("repairs", "names"))
    tested = {name.split("_")[1] for name in globals() if name.startswith("test_") and "_without_it_" in name}
    assert names == tested
    assert len({repair.name for repair in repairs.all_repairs()}) == len(repairs.all_repairs())


@pytest.mark.parametrize(
    "arguments, says",
    [
        (
            "MODEL=llama LENGTH=129",
            "129 tokens cannot be divided by 2: split_gather gives each of 2 ranks equally many",
        ),
        ("MODEL=llama HEADS=1 MODES=all_to_all", "1 attention heads cannot be divided by 2: all_to_all gives"),
        ("MODEL=llama BATCH=3", "3 sequences cannot be divided by 2"),
        ("MODEL=llama DATA=4", "2 ranks cannot be divided into PP=1, DATA=4, TP=1"),
        ("MODEL=gpt", "MODEL=gpt is not known; use MODEL=bert or MODEL=llama"),
        ("MODEL=bert MODES=all_to_all+flash", "MODES names 'all_to_all+flash', which is not known"),
        ("MODEL=bert SP=2", "'SP=2' is no setting of modern.py"),
    ],
)
def test_what_cannot_be_divided_is_refused_in_one_sentence(arguments, says):
    error = job(arguments, 2, fails=True).error
    assert says in error and "\n" not in error


def test_one_rank_has_nobody_to_share_with():
    error = job("MODEL=llama", 1, fails=True).error
    assert error == "modern.py shares sequences among ranks, and there is one; start two or more"
