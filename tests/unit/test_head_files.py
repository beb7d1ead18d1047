"""Depth head files in our own layout: whole, damaged, foreign and malicious."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from inner_guidance.depth_head.architectures.latent import LatentDepth
from inner_guidance.depth_head.architectures.pixel_mlp import PixelMLP
from inner_guidance.depth_head.architectures.readout import Readout
from inner_guidance.depth_head.files import fingerprint
from inner_guidance.depth_head.head import (
    DepthHead,
    LatentSpace,
    middle_blocks,
    require_fit,
    require_latent_space,
)
from inner_guidance.depth_head.head_files import TARGET, load_depth_head, save_depth_head
from inner_guidance.depth_head.metrics import DepthRange

LATENTS = LatentSpace("Flux", 16, "scale 0.3611, shift -0.04185")


def pixel_mlp():
    torch.manual_seed(0)
    return PixelMLP({"o1": 8, "o2": 4}, strong=("o1", "o2"), weak=("o2",)).eval()


def readout():
    torch.manual_seed(0)
    return Readout({"r0": 8, "r1": 128}, weak=("r1",), embedding=("time", 16), projection=128).eval()


def latent():
    torch.manual_seed(0)
    return LatentDepth(16, widths=(8, 8)).eval()


def head(network=None):
    network = network or pixel_mlp()
    return DepthHead(
        network,
        LATENTS if isinstance(network, LatentDepth) else "a model",
        DepthRange(1.5, 12.0),
        {"steps": 100, "abs_rel": {"200": 0.12}},
        "it",
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "made.safetensors"
    save_depth_head(path, head())
    return path


def rewrite(path, tensors=None, **metadata):
    """The file with other tensors or metadata entries; an entry of None is left out."""
    with safe_open(path, framework="pt") as file:
        described = file.metadata() | metadata
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    described = {name: value for name, value in described.items() if value is not None}
    save_file(found if tensors is None else tensors(found), path, described)


@pytest.mark.parametrize("network", [pixel_mlp, readout, latent])
def test_a_saved_head_comes_back(tmp_path, network):
    path = tmp_path / "made.safetensors"
    save_depth_head(path, head(network()))

    loaded = load_depth_head(path)

    assert (loaded.model_family, loaded.depth_range, loaded.training, loaded.name) == (
        head(network()).model_family,
        DepthRange(1.5, 12.0),
        {"steps": 100, "abs_rel": {"200": 0.12}},
        "made.safetensors",
    )
    assert type(loaded.network) is type(network())
    assert loaded.network.config == network().config
    before, after = network().state_dict(), loaded.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not loaded.network.training
    assert os.listdir(tmp_path) == ["made.safetensors"]


def test_the_file_says_what_it_is(saved):
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    assert {name: metadata[name] for name in ("format", "format_version", "kind", "architecture")} == {
        "format": "inner_guidance",
        "format_version": "2",
        "kind": "depth_head",
        "architecture": "pixel_mlp",
    }
    assert (metadata["model_family"], metadata["target"]) == ("a model", TARGET)
    assert json.loads(metadata["taps"]) == {"o1": 8, "o2": 4}
    assert json.loads(metadata["depth_range"]) == {"near": 1.5, "far": 12.0}
    assert json.loads(metadata["training"])["steps"] == 100


def test_the_file_of_a_latent_head_names_its_latents(saved):
    save_depth_head(saved, head(latent()))
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["architecture"] == "latent"
    assert json.loads(metadata["latent_space"]) == {
        "name": "Flux",
        "channels": 16,
        "scale": "scale 0.3611, shift -0.04185",
    }
    assert not {"model_family", "taps"} & set(metadata)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"latent_space": None}, r"\(its latent_space cannot be read\)"),
        ({"latent_space": '{"name": "Flux", "channels": 16}'}, r"\(its latent_space is"),
        ({"latent_space": '{"name": "Flux", "channels": "16", "scale": ""}'}, r"\(its latent_space is"),
        ({"latent_space": '{"name": "a\\nb", "channels": 16, "scale": ""}'}, r"\(its latent_space is"),
        ({"latent_space": '{"name": "Flux", "channels": 16, "scale": " "}'}, r"\(its latent_space is"),
        (
            {"latent_space": '{"name": "Flux", "channels": 4, "scale": "1"}'},
            "other channels than its network",
        ),
        ({"config": '{"channels": 16, "widths": [7]}'}, "widths must be multiples of 8"),
        ({"config": '{"channels": 1000000000, "widths": [8]}'}, "must have 1 to 16384 channels"),
        ({"config": '{"channels": 16, "widths": []}'}, "widths must be 1 to 16 whole numbers"),
        ({"architecture": "pixel_mlp", "model_family": "a model"}, "is damaged"),
    ],
)
def test_a_latent_head_that_contradicts_itself_is_one_sentence(saved, change, sentence):
    save_depth_head(saved, head(latent()))
    rewrite(saved, **change)
    with pytest.raises(ValueError, match=sentence) as error:
        load_depth_head(saved)
    assert "\n" not in str(error.value)


def test_weights_loaded_in_inference_mode_let_gradients_pass(saved):
    with torch.inference_mode():
        network = load_depth_head(saved).network
    features = {"o1": torch.randn(1, 8, 2, 2, requires_grad=True), "o2": torch.randn(1, 4, 4, 4)}
    network(features, torch.zeros(1), (4, 4)).sum().backward()
    assert features["o1"].grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_an_interrupted_save_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    write = Path.write_bytes

    def interrupted(path, content):
        write(path, content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_depth_head(saved, head(readout()))
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_others_may_read_what_new_files_let_them(saved):
    usual = saved.with_name("usual")
    usual.touch()
    assert saved.stat().st_mode == usual.stat().st_mode


def test_a_loaded_file_can_be_replaced(saved):
    network = load_depth_head(saved).network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with open(saved, "r+b") as file:  # in place, as other programs do
        file.write(b"\0" * saved.stat().st_size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_fingerprint_is_that_of_the_content(saved):
    first, copy = fingerprint(saved), saved.with_name("copy.safetensors")
    copy.write_bytes(saved.read_bytes())
    assert fingerprint(copy) == first
    save_depth_head(saved, head(readout()))
    assert fingerprint(saved) != first


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-100], lambda c: c[:50], lambda c: b"", lambda c: b"<!doctype html>"]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_damaged_file_is_one_sentence(saved, damage, suffix):
    path = saved.with_suffix(suffix)
    path.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(ValueError, match=rf"^made{suffix} is damaged") as error:
        load_depth_head(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_missing_file_is_one_sentence(tmp_path, suffix):
    with pytest.raises(ValueError, match=rf"There is no file gone{suffix}: refresh the list"):
        load_depth_head(tmp_path / f"gone{suffix}")


def test_a_header_that_claims_a_huge_tensor_is_refused(saved):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    saved.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match=r"made\.safetensors is damaged"):
        load_depth_head(saved)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": None}, "is not a depth head of Inner Guidance"),
        ({"format": "other"}, "is not a depth head of Inner Guidance"),
        ({"kind": "depth_prior"}, "holds a depth prior, not a depth head"),
        ({"kind": None}, r"is damaged \(its kind is missing\)"),
        ({"kind": ""}, r"is damaged \(its kind is missing\)"),
        ({"kind": " _ "}, r"is damaged \(its kind is missing\)"),
        ({"format_version": ""}, r"is damaged \(its format_version is missing\)"),
        ({"target": " "}, r"is damaged \(its target is missing\)"),
        ({"architecture": ""}, r"is damaged \(its architecture is missing\)"),
        ({"model_family": ""}, r"is damaged \(its model_family is missing\)"),
        ({"model_family": "Stable Diffusion 1.x "}, r"is damaged \(its model_family is Stable Diff"),
        ({"format_version": "3"}, "has format version 3, this pack reads 1 to 2: update"),
        ({"target": "metres"}, "predicts metres, this pack reads relative inverse depth"),
        ({"architecture": "transformer"}, "has the architecture transformer, which this pack does not know"),
        ({"architecture": None}, "is damaged"),
        ({"architecture": "readout"}, "is damaged"),
        ({"config": None}, r"is damaged \(its config cannot be read\)"),
        ({"config": "{"}, r"is damaged \(its config cannot be read\)"),
        ({"config": "[" * 10**5}, r"is damaged \(its config cannot be read\)"),
        ({"config": "[]"}, "is damaged"),
        ({"config": '{"taps": {"o1": 8}, "strong": ["o2"], "weak": ["o1"]}'}, "is damaged"),
        ({"config": '{"taps": {"o1": 8}, "strong": ["o1"], "weak": ["o1"], "other": 1}'}, "is damaged"),
        ({"config": '{"taps": {"o1": 8}, "strong": ["o1"], "weak": ["o1"]}'}, "is damaged"),
        ({"config": '{"taps": {"o1": 1000000000000}, "strong": ["o1"], "weak": ["o1"]}'}, "is damaged"),
        ({"config": '{"taps": {"o1": -8}, "strong": ["o1"], "weak": ["o1"]}'}, "is damaged"),
        ({"depth_range": '{"near": 5, "far": 1}'}, "must be above 0 and below far"),
        ({"depth_range": '{"near": "x", "far": 1}'}, "is damaged"),
        ({"model_family": None}, "is damaged"),
        ({"model_family": "a\nb"}, r"is damaged \(its model_family is a\\nb\)"),
        ({"training": "[1]"}, r"is damaged \(its training cannot be read\)"),
        ({"training": "7"}, r"is damaged \(its training cannot be read\)"),
        ({"training": '{"a": ' * 900 + "1" + "}" * 900}, r"is damaged \(its training cannot be read\)"),
        ({"depth_range": '{"near": 1, "far": Infinity}'}, r"is damaged \(its distances are not finite\)"),
        ({"depth_range": '{"near": 1, "far": 1' + "0" * 400 + "}"}, r"\(its distances are not finite\)"),
        ({"depth_range": '{"near": NaN, "far": 2}'}, r"is damaged \(its distances are not finite\)"),
        ({"depth_range": "5"}, r"is damaged \(its depth_range cannot be read\)"),
    ],
)
def test_a_foreign_or_malicious_description_is_one_sentence(saved, change, sentence):
    rewrite(saved, **change)
    with pytest.raises(ValueError, match=sentence) as error:
        load_depth_head(saved)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (lambda found: dict(list(found.items())[1:]), "is missing"),
        (lambda found: found | {"extra": torch.zeros(1)}, r"\(extra is not as its description says\)"),
        (
            lambda found: found | {"strong.depth.bias": torch.zeros(2)},
            r"strong.depth.bias is not as its desc",
        ),
        (lambda found: found | {"strong.depth.bias": torch.tensor([torch.nan])}, "bias is not finite"),
        (
            lambda found: {n: t - 2 if n.endswith("running_var") else t for n, t in found.items()},
            r"is damaged \(\S+.running_var is negative\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_one_sentence(saved, tensors, sentence):
    rewrite(saved, tensors)
    with pytest.raises(ValueError, match=sentence):
        load_depth_head(saved)


def test_a_head_that_does_not_fit_names_both():
    ours = head()
    require_fit(ours, "a model", {"o0": 8, "o1": 8, "o2": 4})
    with pytest.raises(ValueError, match=r"^it reads the features of a model, but this model is another"):
        require_fit(ours, "another", {"o1": 8, "o2": 4})
    with pytest.raises(ValueError, match=r"it reads 4 channels at o2 of a model, but .* has 8 there"):
        require_fit(ours, "a model", {"o1": 8, "o2": 8})
    with pytest.raises(ValueError, match=r"it reads 4 channels at o2 of a model, but .* has no such block"):
        require_fit(ours, "a model", {"o1": 8})


def test_a_latent_head_for_other_latents_names_both():
    ours = head(latent())
    require_latent_space(ours, LATENTS)
    others = LatentSpace("SDXL", 4, "scale 0.1303")
    said = r"^it reads latents of Flux \(16 channels, .*\), but this model has latents of SDXL \(4 channels"
    with pytest.raises(ValueError, match=said):
        require_latent_space(ours, others)


def test_default_blocks_are_the_middle_of_the_decoder():
    assert [(list(strong), weak) for strong, weak in map(middle_blocks, (6, 9, 12))] == [
        ([1, 2, 3, 4], 3),
        ([2, 3, 4, 5, 6], 4),
        ([3, 4, 5, 6, 7, 8], 6),
    ]
