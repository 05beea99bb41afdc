"""OPT by size, folder and hub name; the text, the tokenizer and the sequences that it learns."""

import json
import shutil
import socket
import time

import pytest
import torch
from handson.sources import SCRIPTS

FOLDER = SCRIPTS / "opt"
# of facebook/opt-*, with the output head counted once
PUBLISHED = {"125m": 125_239_296, "350m": 331_196_416, "1.3b": 1_315_758_080, "66b": 65_719_701_504}


@pytest.fixture
def saved(opt_module, tmp_path):
    """A folder with a tiny OPT, and the model."""
    model, _ = opt_module("models").build("tiny", seed=3)
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved", model


def refusal(capsys, call) -> str:
    with pytest.raises(SystemExit) as stop:
        call()
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("size", ["tiny", "small", "125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b"])
def test_a_size_has_the_parameters_that_its_formula_says(opt_module, size):
    from transformers import OPTForCausalLM

    models = opt_module("models")
    with torch.device("meta"):
        network = OPTForCausalLM(models.config(size))
    counted = sum(p.numel() for p in network.parameters())
    assert models.parameters(size) == counted == PUBLISHED.get(size, counted)
    assert (
        abs(counted / {"m": 1e6, "b": 1e9}.get(size[-1], counted) / float(size[:-1]) - 1 if size in PUBLISHED else 0)
        < 0.06
    )


def test_without_hub_and_folder_the_weights_are_random_and_the_log_says_why(opt_module):
    models = opt_module("models")
    folder, why = models.find("125m")
    assert folder is None and why == "no folder of this name, and the environment says to stay offline"
    one, says = models.build("tiny", seed=5)
    two, _ = models.build("tiny", seed=5)
    other, _ = models.build("tiny", seed=6)
    assert says == "random weights, seed 5: tiny is a size of this tutorial's own"
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_weights_are_made_in_their_own_type_and_never_wider(opt_module):
    from handson.measure.memory import PeakMemory

    models = opt_module("models")
    with PeakMemory() as peak:
        model, _ = models.build("small", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and peak.peak_bytes < 2.5 * models.parameters("small")


def test_a_folder_gives_its_weights(opt_module, saved):
    folder, model = saved
    loaded, says = opt_module("models").build(str(folder))
    assert says == f"weights of {folder}"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize("name", ["125m", "facebook/opt-125m", "opt-125m"])
def test_a_hub_name_gives_real_weights_from_the_cache(opt_module, saved, tmp_path, monkeypatch, name):
    from huggingface_hub import constants

    folder, model = saved
    cache = tmp_path / "cache" / "models--facebook--opt-125m"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, cache / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    loaded, says = opt_module("models").build(name)
    assert says == f"weights of {name}" and torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.alone
def test_a_hub_that_does_not_answer_is_given_up_in_bounded_time(opt_module, monkeypatch):
    from huggingface_hub import constants

    models, hub = opt_module("models"), opt_module("hub")  # before the clock starts: transformers takes seconds
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read once, when the library was imported
    monkeypatch.setattr(hub, "LIMIT_SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        folder, why = models.find("facebook/opt-125m")
        took = time.monotonic() - began
    assert 0.9 < took < 5 and folder is None
    # the library's own limit or ours, whichever is first
    assert "did not answer within 1 s" in why or ("cannot be reached (" in why and "Timeout" in why)


def test_a_model_that_cannot_be_had_is_refused_in_one_sentence(opt_module, saved, tmp_path, capsys):
    models = opt_module("models")
    folder, _ = saved
    for name, says in (("/no/such/folder", "there is no folder"), ("gpt7", "is no folder, no size (tiny, small, 125m")):
        assert says in refusal(capsys, lambda name=name: models.build(name))
    (tmp_path / "empty").mkdir()
    assert "it has no config.json" in refusal(capsys, lambda: models.build(str(tmp_path / "empty")))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    size = len(whole)
    assert f"{folder}: model.safetensors is cut short: it has {size - 1000:,} bytes of {size:,}; copy the folder" in (
        refusal(capsys, lambda: models.build(str(folder)))
    )
    weights.unlink()
    assert "no weights (*.safetensors)" in refusal(capsys, lambda: models.build(str(folder)))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert "a model of the kind gpt2, not an OPT" in refusal(capsys, lambda: models.build(str(folder)))


def test_truncated_weights_beside_a_manifest_are_refused_by_name(opt_module, saved, capsys):
    folder, _ = saved
    opt_module("manifest").write(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert f"{weights} is truncated (" in refusal(capsys, lambda: opt_module("models").build(str(folder)))


def changed(folder, **values):
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))


@pytest.mark.parametrize(
    "values, says",
    [
        ({"ffn_dim": "x"}, "config.json has no whole number ffn_dim, but 'x'; copy the folder again"),
        ({"ffn_dim": 100}, "do not fit its config.json (size mismatch for "),
        ({"num_attention_heads": 3}, "cannot be read (embed_dim must be divisible by num_heads"),
    ],
)
def test_a_configuration_that_does_not_suit_is_refused_in_one_sentence(opt_module, saved, capsys, values, says):
    folder, _ = saved
    changed(folder, **values)
    said = refusal(capsys, lambda: opt_module("models").build(str(folder)))
    assert said.startswith("error: ") and said.count("\n") == 1 and says in said and str(folder) in said


@pytest.mark.parametrize(
    "header, says",
    [
        (
            b"\x10" + bytes(7) + b"{" * 16,
            "model.safetensors is damaged: it has no readable header; copy",
        ),
        (
            b"\xff" * 20,
            "model.safetensors is cut short, or no safetensors file: it has 20 bytes; copy",
        ),
    ],
)
def test_damaged_weights_without_a_manifest_are_refused_by_name(opt_module, saved, capsys, header, says):
    folder, _ = saved
    (folder / "model.safetensors").write_bytes(header)
    assert f"{folder}: {says}" in refusal(capsys, lambda: opt_module("models").build(str(folder)))


def test_weights_that_are_not_all_there_are_refused(opt_module, saved, capsys):
    from safetensors.torch import load_file, save_file

    folder, _ = saved
    held = load_file(folder / "model.safetensors")
    del held["model.decoder.layers.2.fc1.weight"]
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    error = refusal(capsys, lambda: opt_module("models").build(str(folder)))
    assert "lack model.decoder.layers.2.fc1.weight and 0 more" in error


def test_the_shipped_text_is_long_enough_and_comes_with_its_licence(opt_module):
    text = opt_module("text")
    words, source = text.get()
    learned, rest = text.divide(words)
    assert len(words) > 300_000 and source == text.SOURCE
    assert 0.09 < len(rest) / len(words) < 0.11 and not set(learned.split("\n\n")[-3:]) & set(rest.split("\n\n")[:3])
    licence = (FOLDER / "python_reference.LICENSE.txt").read_text()
    assert "Python Software Foundation; All Rights Reserved" in licence and "VERSION 2" in licence


def test_text_comes_from_files_of_each_kind(opt_module, tmp_path):
    entry = "every entry is a sentence of some length " * 60
    written = {
        "a.txt": entry * 2,
        "b.jsonl": "\n".join(json.dumps({"text": entry}) for _ in range(2)),
        "c.json": json.dumps({"data": [{"text": entry}] * 2}),
        "d.csv": f'n,text\n1,"{entry}"\n2,"{entry}"\n',
    }
    for name, content in written.items():
        (tmp_path / name).write_text(content)
        words, source = opt_module("text").get(str(tmp_path / name))
        assert words.count("every entry") == 120 and source == f"the file {name}"


def test_an_entry_of_a_csv_may_be_a_whole_book(opt_module, tmp_path):
    (tmp_path / "book.csv").write_text("n,text\n1," + "word " * 30_000 + "\n")
    assert opt_module("text").get(str(tmp_path / "book.csv"))[0].count("word") == 30_000


def test_text_comes_from_a_local_dataset(opt_module, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    entries = datasets.Dataset.from_dict({"n": [1, 2], "text": ["one entry of many words " * 60] * 2})
    entries.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=entries, test=entries).save_to_disk(tmp_path / "divided")
    entries.to_json(tmp_path / "lines.jsonl")
    for name in ("saved", "divided", "lines.jsonl"):
        words, source = opt_module("text").get(dataset=str(tmp_path / name))
        assert words.count("one entry") == 120 and source == f"the dataset {tmp_path / name}"


@pytest.mark.parametrize(
    "name, content, says",
    [
        (None, None, "there is no file"),
        ("a.txt", b"\xff\xfe\x00", "is no text in UTF-8 (byte 0)"),
        ("a.txt", b"too short", "has 9 characters: give at least 2,000"),
        ("a.jsonl", b'{"words": "none"}', "an entry without the field 'text'"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(opt_module, tmp_path, capsys, name, content, says):
    path = tmp_path / (name or "absent.txt")
    if content:
        path.write_bytes(content)
    assert says in refusal(capsys, lambda: opt_module("text").get(str(path)))


def test_a_dataset_that_cannot_be_had_is_refused(opt_module, capsys):
    pytest.importorskip("datasets")
    assert "the dataset nobody/nothing cannot be loaded" in refusal(
        capsys, lambda: opt_module("text").get(dataset="nobody/nothing")
    )


def test_a_tokenizer_is_trained_on_the_spot_with_the_numbers_of_opt(opt_module, tmp_path):
    tokens, text = opt_module("tokens"), opt_module("text")
    learned, rest = text.divide(text.get()[0])
    tokenizer, says = tokens.get(None, learned, 1024)
    assert says == "a tokenizer trained on this text, 1,024 tokens" and len(tokenizer) == 1024
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2, 2)
    encoded = tokenizer(rest)
    assert set(encoded) == {"input_ids", "attention_mask"} and encoded["input_ids"][0] == 2
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == rest
    assert len(encoded["input_ids"]) < len(rest.encode()) / 2
    again, _ = tokens.get(None, learned, 1024)
    assert again.get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    loaded, says = tokens.get(tmp_path, "", 1024)
    assert says == f"the tokenizer in {tmp_path}, 1,024 tokens" and loaded(rest) == encoded


def test_a_tokenizer_that_does_not_suit_the_model_is_refused(opt_module, tmp_path, capsys):
    tokens = opt_module("tokens")
    tokens.get(None, "some words " * 300, 400)[0].save_pretrained(tmp_path)
    size = len(tokens.load(tmp_path))
    assert f"has {size} tokens, the model {size - 1}" in refusal(capsys, lambda: tokens.get(tmp_path, "", size - 1))
    (tmp_path / "tokenizer.json").write_text("{")
    assert f"the tokenizer in {tmp_path} cannot be read" in refusal(capsys, lambda: tokens.get(tmp_path, "", 400))
    assert "take 260 at least" in refusal(capsys, lambda: tokens.get(None, "words", 100))


def test_sequences_are_whole_and_made_up_ones_have_no_special_token(opt_module):
    tokens = opt_module("tokens")
    blocks = tokens.blocks(torch.arange(10), 3)
    assert blocks.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    made = tokens.synthetic(50, 40, 30, seed=1)
    assert made.shape == (40, 30) and made.min() == 4 and made.max() == 49
    assert torch.equal(made, tokens.synthetic(50, 40, 30, seed=1))
    with pytest.raises(opt_module("hub").Unusable, match="the text has 2 tokens, too few for one sequence of 3"):
        tokens.blocks(torch.arange(2), 3)
