"""Depth head files in the public layout of Readout Guidance: whole, foreign and malicious."""

import os
import pickle

import pytest
import torch

from inner_guidance.depth_head.head import SD1, SDXL
from inner_guidance.depth_head.head_files import load_depth_head, save_depth_head
from inner_guidance.tests.support.readout_reference import (
    SD15_CHANNELS,
    SDXL_CHANNELS,
    public_checkpoint,
    public_weights,
    readout_reference_of,
)


@pytest.mark.parametrize(("channels", "family"), [(SD15_CHANNELS, SD1), (SDXL_CHANNELS, SDXL)])
def test_a_public_readout_head_computes_what_its_layout_says(tmp_path, channels, family):
    path = tmp_path / "readout_spatial_depth.pt"
    torch.save(public_checkpoint(channels), path)
    generator = torch.Generator().manual_seed(1)
    features = {
        f"r{i}": torch.randn(1, c, 2 ** (1 + i // 3), 2 ** (1 + i // 3), generator=generator)
        for i, c in enumerate(channels)
    }
    embedding = torch.randn(1, 1280, generator=generator)

    loaded = load_depth_head(path)
    with torch.no_grad():
        depth = loaded.network(features | {"time": embedding}, torch.zeros(1), (8, 6))
    expected = readout_reference_of(public_weights(channels), list(features.values()), embedding, (8, 6))

    assert loaded.model_family == family
    assert loaded.network.branch_taps["weak"] == (f"r{len(channels) // 2}", "time")
    torch.testing.assert_close(depth.double(), expected, rtol=1e-4, atol=1e-5)
    assert depth.std() > 0.005

    ours = tmp_path / "as_ours.safetensors"
    save_depth_head(ours, loaded)
    again = load_depth_head(ours)
    with torch.no_grad():
        assert torch.equal(again.network(features | {"time": embedding}, torch.zeros(1), (8, 6)), depth)
    assert again.model_family == family


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, save in (
        ("zip.pt", torch.save),
        ("plain.pt", lambda o, p: p.write_bytes(pickle.dumps(o, protocol=2))),
    ):
        path = tmp_path / name
        save(public_checkpoint(SDXL_CHANNELS[:1]) | {"extra": Malicious()}, path)
        with pytest.raises(ValueError, match=f"{name} is damaged, or holds more than weights"):
            load_depth_head(path)
    assert not (tmp_path / "owned").exists()


def changed(**config):
    checkpoint = public_checkpoint(())
    return checkpoint | {"config": checkpoint["config"] | config}


@pytest.mark.parametrize(
    ("checkpoint", "sentence"),
    [
        ({}, "is not a depth head of Readout Guidance"),
        (torch.zeros(3), "is not a depth head of Readout Guidance"),
        ({"config": {}, "aggregation_network": {}}, "is not a depth head of Readout Guidance"),
        (changed(save_timestep=[0, 1]), "is not a depth head of Readout Guidance"),
        (changed(projection_dim=10**9), "is not a depth head of Readout Guidance"),
        (changed(dims="1280"), "is not a depth head of Readout Guidance"),
        (changed(dims=[64, 64]), "of other blocks than those of Stable Diffusion 1.x or Stable Diffusion XL"),
        (changed(dims=list(SDXL_CHANNELS)), r"is damaged \(bottleneck_layers.0.conv1.norm.bias is missing"),
    ],
)
def test_another_checkpoint_is_one_sentence(tmp_path, checkpoint, sentence):
    path = tmp_path / "other.pt"
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=sentence) as error:
        load_depth_head(path)
    assert "\n" not in str(error.value)


def test_what_the_authors_files_also_hold_is_no_obstacle(tmp_path):
    checkpoint = public_checkpoint(SDXL_CHANNELS)
    checkpoint["aggregation_network"]["logit_scale"] = torch.tensor(2.6)
    torch.save(checkpoint, tmp_path / "a.pt")
    assert load_depth_head(tmp_path / "a.pt").model_family == SDXL
