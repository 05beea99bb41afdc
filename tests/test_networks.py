"""The networks that are traced: names, shapes and numbers of parameters of the ones that they stand for."""

import re
import sys
from pathlib import Path

import pytest
import torch
from handson import launch

sys.path.insert(0, str(Path(__file__).parents[1] / "tutorial_src" / "auto_parallel"))

import networks

PROBE = str(Path(__file__).parent / "scripts" / "checkpoint_probe.py")


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("resnet152", 60_192_808)]
)
def test_a_resnet_has_torchvisions_number_of_parameters(name, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in networks.resnet(name).parameters()) == parameters


def test_resnet50_has_torchvisions_names_and_shapes():
    with torch.device("meta"):
        state = networks.resnet("resnet50").state_dict()
    assert len(state) == 53 * 6 + 2  # each convolution with its batch norm, and the last layer
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["layer3.5.bn3.running_var"] == (1024,)
    assert shapes["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert shapes["fc.weight"] == (1000, 2048)
    assert list(state)[:6] == ["conv1.weight", *(f"bn1.{name}" for name in NORM)]


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_a_resnet_halves_its_images_five_times_and_takes_small_ones():
    model = networks.resnet("resnet18", classes=10)
    sizes = []
    for name in ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        getattr(model, name).register_forward_hook(lambda module, given, made: sizes.append(made.shape[-1]))
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)
    assert sizes == [32, 16, 16, 8, 4, 2]
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("name", "parameters"), [("small", 124_439_808), ("medium", 354_823_168)])
def test_the_gpt_has_gpt2s_parameters_names_and_shapes(name, parameters):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = networks.GPTS[name]
    config = GPT2Config(n_layer=sizes.layers, n_embd=sizes.width, n_head=sizes.heads)
    with torch.device("meta"):
        ours, theirs = networks.gpt(name), GPT2LMHeadModel(config)
    assert sum(p.numel() for p in ours.parameters()) == parameters
    expected = {}
    for key, value in theirs.named_parameters():
        # Hugging Face's Conv1D keeps its weights transposed.
        turned = re.search(r"(c_attn|c_proj|c_fc)\.weight$", key)
        expected[key] = tuple(value.T.shape if turned else value.shape)
    assert {key: tuple(value.shape) for key, value in ours.named_parameters()} == expected


def test_the_gpt_computes_what_gpt2_computes():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = networks.GPTS["tiny"]
    sizing = {"n_layer": sizes.layers, "n_embd": sizes.width, "n_head": sizes.heads}
    config = GPT2Config(**sizing, n_positions=sizes.positions, vocab_size=sizes.vocabulary)
    theirs = GPT2LMHeadModel(config).eval()
    ours = networks.gpt("tiny")
    state = {
        key: value.T if re.search(r"(c_attn|c_proj|c_fc)\.weight$", key) else value
        for key, value in theirs.state_dict().items()
    }
    ours.load_state_dict(state, strict=False)
    assert set(ours.state_dict()) <= set(state)
    tokens = torch.randint(sizes.vocabulary, (2, sizes.positions))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)
    labels = tokens.roll(-1, 1)
    expected = torch.nn.functional.cross_entropy(ours(tokens).flatten(0, 1), labels.flatten())
    torch.testing.assert_close(ours(tokens, labels), expected)


@pytest.mark.ranks
def test_both_tracers_write_the_networks_down(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")
    run = launch(PROBE, "trace", preset="laptop", quiet=True)
    found = {row["model"]: row for row in run.rows("answer")}
    assert max(found["resnet18"]["off"] + found["tiny"]["off"]) < 1e-5
    assert found["resnet18"]["nodes"][:6] == ["x", "conv1", "bn1", "relu", "maxpool", "layer1_0_conv1"]
    assert "transformer_h_0_ln_1" in found["tiny"]["nodes"]
