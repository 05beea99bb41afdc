"""A ring of ranks computes plain attention and trains the same BERT, in every mixture; what it costs is what we say."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from handson import launch
from handson.run import Run
from handson.sources import SCRIPTS

FOLDER = SCRIPTS / "sequence_parallel"
PROBE = str(Path(__file__).parent / "scripts" / "sequence_probe.py")
TRAIN = ("sequence_parallel/train.py", "--config", "config.py", "-s", "--check", "--measure")
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")
    monkeypatch.setenv("HANDSON_PRESET", "laptop")
    monkeypatch.syspath_prepend(str(FOLDER))


# Attention ------------------------------------------------------------------------------------------------------


@cache
def compared(ranks: int) -> Run:
    sizes = ("DEPTH=2", "HIDDEN_SIZE=32", "SEQUENCE_LENGTH=32", "BATCH_SIZE=4")
    return launch("sequence_parallel/compare_attention.py", "config.py", *sizes, ranks=ranks, quiet=True)


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("kind", ["ring", "ring_recompute", "ring_online"])
def test_output_and_every_gradient_are_those_of_plain_attention(kind, ranks):
    (row,) = (r for r in compared(ranks).rows("compared", rank=0) if r["attention"] == kind and not r["faults"])
    assert row["output_difference"] <= TOLERANCE
    assert row["gradient_difference"] <= TOLERANCE
    assert row["loss_difference"] <= TOLERANCE < 1 < row["loss"]
    # 2 layers of 12 parameters, 3 embeddings, 2 of the last norm, 4 + 2 of the head's transform, its bias.
    assert row["parameters"] == 2 * 12 + 3 + 2 + 4 + 1


@pytest.mark.ranks
def test_keys_and_values_visit_every_rank_once():
    held = {(row["rank"], row["hops"]): row["holds"] for row in compared(4).rows("travel")}
    for rank in range(4):
        assert [held[rank, hops] for hops in range(4)] == [(rank - hops) % 4 for hops in range(4)]


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_online_ring_is_exact_when_a_whole_block_is_masked_and_never_holds_more_than_one_block(ranks):
    for row in launch(PROBE, ranks=ranks, quiet=True).rows("answer"):
        assert row["output"] <= TOLERANCE and row["slope"] <= TOLERANCE
        assert max(row["gradients"].values()) <= TOLERANCE and len(row["gradients"]) == 4
        assert row["largest"] == row["block"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("flash", 8, 2), "attention=flash is not known; use plain, ring, ring_recompute, ring_online"),
        (("plain", 8, 3), "a hidden size of 8 cannot be divided among 3 heads; use a multiple of it"),
        (("plain", 8, 2, 2), "plain attention needs the whole sequence on one rank, which 2 share; use ring"),
        (("ring_online", 8, 2, 1, 0.1), "ring_online has no attention dropout, since it forgets each block of scores"),
    ],
)
def test_attention_that_cannot_be_is_refused_in_one_sentence(arguments, sentence):
    from attention import build_attention
    from ring import Ring

    kind, hidden, heads, ranks, dropout = (*arguments, 1, 0.0)[:5] if len(arguments) < 5 else arguments
    with pytest.raises(ValueError, match=re.escape(sentence)):
        build_attention(kind, hidden, heads, Ring(ranks=tuple(range(ranks))), dropout)


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (torch.ones(2, 4, dtype=torch.bool), "bool [2, 4]"),  # the rank's own piece instead of the whole sequence
        (torch.ones(2, 1, 1, 8, dtype=torch.bool), "bool [2, 1, 1, 8]"),
        (torch.ones(2, 8), "float32 [2, 8]"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_with_both_shapes(keep, words):
    from attention import build_attention
    from ring import Ring

    layer = build_attention("ring_online", 8, 2, Ring(ranks=(0, 1)))
    sentence = (
        f"the padding mask is {words}, and 2 ranks with 4 tokens each need bool [2, 8]: "
        "every rank takes the mask of the whole sequence"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        layer(torch.zeros(2, 4, 8), keep)


def test_a_sequence_that_a_ring_cannot_share_is_refused():
    from bert import Bert, BertShape
    from ring import Ring

    shape = BertShape(vocabulary=16, sequence_length=10, hidden_size=8, depth=1, heads=2)
    with pytest.raises(ValueError, match="10 tokens cannot be cut into 4 equal pieces; use a multiple of 4"):
        Bert(shape, "ring_online", Ring(ranks=(0, 1, 2, 3)))
    with pytest.raises(ValueError, match="each rank reads 10 tokens of a sequence, and here are 5"):
        Bert(shape)(torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 5, dtype=torch.long), None)


def test_weights_follow_from_name_and_seed_alone_whatever_pytorch_would_start_with():
    from bert import Bert, BertShape, load_weights, with_weights

    shape = BertShape(vocabulary=16, sequence_length=8, hidden_size=8, depth=2, heads=2, sentence_order=True)
    drawn = Bert(shape, "ring_online")
    load_weights(drawn, 3)
    made = with_weights(shape, "ring_online", seed=3)
    assert made.heads.word is made.embedding.word and not any(weight.is_meta for weight in made.parameters())
    assert all(torch.equal(*pair) for pair in zip(drawn.parameters(), made.parameters(), strict=True))
    other = with_weights(shape, "ring_online", seed=4)
    assert not any(torch.equal(*pair) for pair in zip(other.parameters(), made.parameters(), strict=True))


# Training -------------------------------------------------------------------------------------------------------

# name -> ranks and the lines of config.py that differ
DIVISIONS = {
    "sp1": (1, "SEQUENCE_PARALLEL_SIZE=1"),
    "sp2": (2,),
    "sp2 recompute, order": (2, "ATTENTION=ring_recompute", "SENTENCE_ORDER=True"),
    "sp4 online": (4, "SEQUENCE_PARALLEL_SIZE=4", "ATTENTION=ring_online"),
    "dp2 x sp2, order": (4, "SENTENCE_ORDER=True"),
    "pp2 x sp2": (4, "PIPELINE_SIZE=2", "NUM_MICRO_BATCHES=2"),
    "dp2 x pp2 x sp2, order": (8, "PIPELINE_SIZE=2", "NUM_MICRO_BATCHES=2", "SENTENCE_ORDER=True"),
}


@cache
def checked(name: str) -> Run:
    ranks, *overrides = DIVISIONS[name]
    return launch(*TRAIN, *overrides, "TIMED_STEPS=1", "WARMUP_STEPS=0", ranks=ranks, quiet=True)


@pytest.mark.ranks
@pytest.mark.parametrize("name", DIVISIONS)
def test_the_loss_and_the_weights_follow_one_process_on_the_same_global_batch(name):
    run = checked(name)
    losses = run.rows("loss")
    assert [row["step"] for row in losses] == [1, 2, 3, 4, 5]
    assert max(abs(row["loss"] - row["reference"]) for row in losses) <= TOLERANCE
    assert losses[-1]["reference"] < losses[0]["reference"] - 0.5  # a model that stands still also agrees
    (parity,) = run.rows("parity")
    assert parity["max_weight_difference"] <= TOLERANCE < 0.01 < parity["weights_moved"]


@pytest.mark.ranks
@pytest.mark.parametrize("name", DIVISIONS)
def test_every_rank_sends_what_the_formulas_say_and_nothing_else(name):
    run = checked(name)
    sent = [row for row in run.rows("formula") if row["about"] == "sent"]
    assert {row["rank"] for row in sent} == set(range(run.ranks)) or run.ranks == 1
    for row in sent:
        assert row["counted"] == row["expected"], row
    axes = {row["axis"] for row in sent if row["expected"]}
    expected = {"sequence", "data × sequence"} if run.ranks > 1 else set()
    assert axes == expected | ({"pipeline", "first, last stage"} if "pp2" in name else set())


@pytest.mark.ranks
@pytest.mark.parametrize("name", [name for name in DIVISIONS if "pp2" not in name])
def test_what_is_kept_for_backward_follows_the_formula_term_by_term(name):
    run = checked(name)
    kept = [row for row in run.rows("formula") if row["about"] == "kept"]
    assert len(kept) == 5 * run.ranks
    for row in kept:
        # Beside the terms: a few numbers of the loss, the sentence-order head; a mask that layers share counts once.
        assert row["counted"] == pytest.approx(row["expected"], rel=1e-3, abs=16), row
    total = next(row for row in kept if row["formula"] == "their sum" and row["rank"] == 0)
    assert total["counted"] == run.value("memory", "activation_bytes")


@pytest.mark.ranks
def test_a_ring_of_two_keeps_half_and_ranks_read_their_own_tokens():
    one, two = checked("sp1"), checked("sp2")
    assert two.value("memory", "activation_bytes") / one.value("memory", "activation_bytes") == pytest.approx(0.5, 1e-3)
    assert [row["tokens"] for row in two.rows("mesh")] == [[0, 32], [32, 64]]
    (time,) = two.rows("step_time")
    assert time["tokens_per_second"] == pytest.approx(8 * 64 / time["median_ms"] * 1e3)


@pytest.mark.ranks
def test_it_trains_as_the_tutorial_says():
    command = ["colossalai", "run", "--nproc_per_node", "2", "train.py", "-s", "STEPS=6"]
    done = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [float(loss) for loss in re.findall(r"^step +\d+/6   loss ([\d.]+)   [\d.e+]+ ms$", done.stdout, re.M)]
    assert len(losses) == 6 and losses[0] > 4 > losses[-1]
    assert "data 1 x pipeline 1 x sequence 2; attention ring" in done.stdout
    assert "Warning" not in done.stderr and "\x1b" not in done.stdout


@pytest.mark.ranks
def test_it_trains_on_the_book():
    run = launch("sequence_parallel/train.py", "STEPS=8", "VOCABULARY=256", ranks=2, quiet=True)
    losses = [row["loss"] for row in run.rows("loss")]
    assert len(losses) == 8 and losses[0] > 5.5 > 5 > losses[-1]


# Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "overrides", "sentence"),
    [
        (3, "", "3 ranks cannot be divided into SEQUENCE_PARALLEL_SIZE=2 x PIPELINE_SIZE=1; start a multiple of 2"),
        (6, "PIPELINE_SIZE=2", "6 ranks cannot be divided into SEQUENCE_PARALLEL_SIZE=2 x PIPELINE_SIZE=2"),
        (3, "SEQUENCE_PARALLEL_SIZE=3", "SEQUENCE_LENGTH=64 is not divisible by 3, as a ring of .*=3 needs; use a"),
        (4, "NUM_HEADS=5", "HIDDEN_SIZE=64 is not divisible by 5, as NUM_HEADS=5 needs; use a multiple of 5"),
        (4, "BATCH_SIZE=5", "BATCH_SIZE=5 is not divisible by 2, as 2 data-parallel copies needs; use a multiple of 2"),
        (4, "PIPELINE_SIZE=2 BATCH_SIZE=6", "BATCH_SIZE=6 is not divisible by 4, as 1 .* copy x 4 micro-batches needs"),
        (4, "ATTENTION=plain", "ATTENTION=plain needs the whole sequence on one rank, which .*=2 is not; use ring"),
        (4, "ATTENTION=flash", "ATTENTION=flash, which is not known; use plain, ring, ring_recompute, ring_online"),
        (4, "ATTENTION=ring_online DROPOUT=0.1", "ring_online forgets its scores, so DROPOUT=0.1 cannot drop any"),
        (4, "DROPOUT=1.5", "DROPOUT=1.5 would drop everything; use a share from 0.0 to below 1"),
        (16, "PIPELINE_SIZE=8 DEPTH=4", "PIPELINE_SIZE=8 is more than the 4 layers of this model; use a larger DEPTH"),
        (2, "SEQUENCE_LENGTH=8", "SEQUENCE_LENGTH=8 is too short for two segments; use 16 or more"),
        (2, "SEQ_LENGTH=8", "says SEQ_LENGTH, which is no setting"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(ranks, overrides, sentence, capsys):
    import bert_settings

    with pytest.raises(SystemExit) as stop:
        names, _ = bert_settings.FILE.read("config.py", bert_settings.FILE.assignments(overrides.split()))
        bert_settings.settle(names, ranks)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(sentence, line)


def test_refusals_come_before_anything_heavy_is_imported():
    code = (
        "import sys; sys.argv = ['train.py', *sys.argv[1:]]\n"
        "try: import train; train.main()\n"
        "except SystemExit: print(sorted({'torch', 'colossalai'} & sys.modules.keys()))"
    )
    for argument, sentence in (
        ("-s", "error: 1 rank cannot be divided into SEQUENCE_PARALLEL_SIZE=2"),
        ("--text=nowhere.txt", "error: there is no text nowhere.txt; the tutorial's own is alice.txt, and -s needs"),
    ):
        argv = [sys.executable, "-c", code, argument]
        if argument != "-s":
            argv.append("SEQUENCE_PARALLEL_SIZE=1")
        done = subprocess.run(argv, cwd=FOLDER, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"
        assert done.stderr.startswith(sentence)


def test_a_comparison_with_dropout_is_refused():
    command = [sys.executable, "compare_attention.py", "config.py", "DROPOUT=0.5"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: attention is compared with the same scores, which DROPOUT=0.5 drops; use 0.0\n"


def test_a_file_that_is_no_text_is_refused(tmp_path, capsys):
    import masked_text

    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(SystemExit) as stop:
        masked_text.read_words(tmp_path / "picture.png")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: picture.png is no text in UTF-8; save it so, or name another by --text\n"


# Data -----------------------------------------------------------------------------------------------------------


def settings_of(*overrides: str, ranks: int = 4):
    import bert_settings

    names, _ = bert_settings.FILE.read("config.py", bert_settings.FILE.assignments(list(overrides)))
    return bert_settings.settle(names, ranks)


def batches_of(settings, data: int, sequence: int) -> dict[tuple[int, int], tuple]:
    """The first batch of each rank of a mesh."""
    import masked_text
    from mesh import Mesh
    from ring import Ring

    ring = tuple(range(sequence))
    return {
        (copy, piece): next(
            masked_text.synthetic(
                settings,
                Mesh(
                    index={"data": copy, "pipeline": 0, "sequence": piece},
                    size={"data": data, "pipeline": 1, "sequence": sequence},
                    ring=Ring(index=piece, ranks=ring),
                ),
            )
        )
        for copy in range(data)
        for piece in range(sequence)
    }


def test_every_division_sees_the_same_global_batch_and_weighs_it_to_one():
    settings = settings_of("SENTENCE_ORDER=True")
    (whole,) = batches_of(settings, 1, 1).values()
    parts = batches_of(settings, 2, 2)
    for which in (0, 1, 3):  # tokens, segments, labels
        rows = [torch.cat([parts[copy, piece][which] for piece in (0, 1)], dim=1) for copy in (0, 1)]
        assert torch.equal(torch.cat(rows), whole[which])
    for which in (2, 5):  # the padding mask and the order are whole on every rank of a ring
        assert torch.equal(torch.cat([parts[0, 1][which], parts[1, 0][which]]), whole[which])
    assert whole[4].sum().item() == pytest.approx(1)
    # Averaged over the four ranks, as Colossal-AI averages gradients, the weights of all masked tokens add up to one.
    assert sum(part[4].sum().item() for part in parts.values()) / 4 == pytest.approx(1)
    counts = [(part[4] > 0).sum().item() for part in parts.values()]
    assert len(set(counts)) > 1, "ranks with equally many masked tokens would not show a mean of means"


def test_made_up_sentences_say_the_same_twice_and_some_words_are_masked():
    import masked_text

    settings = settings_of("BATCH_SIZE=64", "SENTENCE_ORDER=True")
    (whole,) = batches_of(settings, 1, 1).values()
    tokens, _, keep, labels, weights, order, _ = whole
    assert set(order.tolist()) == {0, 1}
    half = (settings.sequence_length - 3) // 2
    first, second = labels[:, 1 : half + 1], labels[:, half + 2 : 2 * half + 2]
    there = keep[:, half + 2 : 2 * half + 2] & (second >= masked_text.FIRST_WORD)
    straight = {(a, b) for a, b in zip(first[order == 0][there[order == 0]].tolist(),
                                       second[order == 0][there[order == 0]].tolist(), strict=True)}  # fmt: skip
    turned = {(b, a) for a, b in zip(first[order == 1][there[order == 1]].tolist(),
                                     second[order == 1][there[order == 1]].tolist(), strict=True)}  # fmt: skip
    dictionary = dict(straight)
    assert len(dictionary) == len(straight) > 40, "a word has one translation"
    assert all(dictionary.get(a, b) == b for a, b in turned)
    masked = weights > 0
    assert (labels[masked] >= masked_text.UNKNOWN).all() and (labels[~keep] == masked_text.PADDING).all()
    assert (tokens[~masked] == labels[~masked]).all()
    words = (labels >= masked_text.UNKNOWN).sum().item()
    assert masked.sum().item() / words == pytest.approx(0.15, abs=0.02)
    assert (tokens[masked] == masked_text.MASK).double().mean().item() == pytest.approx(0.8, abs=0.06)


def test_the_book_is_read_as_words_and_its_second_segment_follows_the_first(tmp_path, capsys):
    import masked_text
    from mesh import ALONE

    path = tmp_path / "text.txt"
    path.write_text("".join(f"Word{'abcdefghij'[i % 10]}, " for i in range(400)))
    assert masked_text.read_words(path)[:4] == ["worda", ",", "wordb", ","]
    _, _, _, labels, *_ = next(masked_text.book(path, settings_of(), ALONE))
    half = (64 - 3) // 2
    commas = labels == labels[:, 1:3].min(dim=1, keepdim=True).values  # the most common word has the least number
    for row in range(len(labels)):
        said = torch.cat([commas[row, 1 : half + 1], commas[row, half + 2 : half + 12]])
        assert (said[1:] != said[:-1]).all(), "words and commas take turns, also from one segment to the next"
    path.write_text("too short")
    with pytest.raises(SystemExit):
        masked_text.book(path, settings_of(), ALONE)
    assert capsys.readouterr().err == "error: text.txt has 2 words, too few for SEQUENCE_LENGTH=64\n"
