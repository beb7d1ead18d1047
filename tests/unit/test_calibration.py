"""The calibration of a head: levels by time, and their place in its file."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from inner_guidance.depth_head.architectures.pixel_mlp import PixelMLP
from inner_guidance.depth_head.calibration import Calibration, LossLevels
from inner_guidance.depth_head.calibration_files import MAPS
from inner_guidance.depth_head.head import DepthHead
from inner_guidance.depth_head.head_files import load_depth_head, save_depth_head

TIMES = (50, 200, 800)


def losses(count=5):
    return torch.rand(count, len(TIMES), generator=torch.Generator().manual_seed(0))


def test_levels_are_mean_and_deviation_over_the_images():
    levels = LossLevels.of(TIMES, losses())

    assert levels.times == TIMES
    np.testing.assert_allclose(levels.means, losses().double().numpy().mean(0))
    np.testing.assert_allclose(levels.deviations, losses().double().numpy().std(0, ddof=1))


@pytest.mark.parametrize("times", [TIMES, TIMES[:1]])
def test_levels_are_interpolated_between_times_and_constant_outside(times):
    levels = LossLevels.of(times, losses()[:, : len(times)])
    at = [0.0, 50.0, 51.0, 125.0, 200.0, 700.0, 800.0, 999.0]

    mean, deviation = levels.at(torch.tensor(at))

    np.testing.assert_allclose(mean.numpy(), np.interp(at, times, levels.means), rtol=1e-5)
    np.testing.assert_allclose(deviation.numpy(), np.interp(at, times, levels.deviations), rtol=1e-5)


def calibration(weak=True):
    depth = torch.rand(3, len(TIMES), 4, 5, generator=torch.Generator().manual_seed(1)).half()
    return Calibration(TIMES, depth, LossLevels.of(TIMES, losses()) if weak else None)


def saved(folder, given):
    path = folder / "made.safetensors"
    network = PixelMLP({"o1": 8, "o2": 4}, strong=("o1", "o2"), weak=("o2",)).eval()
    save_depth_head(path, DepthHead(network, "a model", calibration=given))
    return path


@pytest.mark.parametrize("weak", [True, False])
def test_a_calibration_comes_back_from_the_file(tmp_path, weak):
    found = load_depth_head(saved(tmp_path, calibration(weak))).calibration

    assert found.times == TIMES
    assert torch.equal(found.depth, calibration().depth)
    assert found.consistency == calibration(weak).consistency


def rewrite(path, maps=None, **metadata):
    with safe_open(path, framework="pt") as file:
        described = file.metadata() | metadata
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    described = {name: value for name, value in described.items() if value is not None}
    if maps is not None:
        tensors[MAPS] = maps
    save_file(tensors, path, described)


def test_a_file_of_version_1_has_none(tmp_path):
    path = saved(tmp_path, None)
    rewrite(path, format_version="1")

    assert load_depth_head(path).calibration is None


LEVELS = {"means": [1, 1, 1], "deviations": [1, 1, 1]}


@pytest.mark.parametrize(
    "described",
    [
        {"times": [50, 50, 800], "consistency": LEVELS},
        {"times": [50, 200], "consistency": None},
        {"times": [], "consistency": None},
        {"times": list(range(3000)), "consistency": None},
        {"times": [50, 200, True], "consistency": None},
        {"times": list(TIMES)},
        {"times": list(TIMES), "consistency": 1},
        {"times": list(TIMES), "consistency": LEVELS | {"means": [1, 1]}},
        {"times": list(TIMES), "consistency": LEVELS | {"means": [1, 1, float("nan")]}},
        {"times": list(TIMES), "consistency": LEVELS | {"deviations": [1, 1, -1]}},
        {"times": list(TIMES), "consistency": LEVELS | {"deviations": [1, 1, 10**400]}},
    ],
)
def test_levels_that_are_none_are_refused(tmp_path, described):
    path = saved(tmp_path, calibration())
    rewrite(path, calibration=json.dumps(described))

    with pytest.raises(ValueError, match="its calibration cannot be read"):
        load_depth_head(path)


@pytest.mark.parametrize(
    "maps",
    [
        calibration().depth.float(),
        calibration().depth[:1],
        calibration().depth[:, :2],
        calibration().depth[0],
        calibration().depth + 1,
        calibration().depth * torch.nan,
        torch.zeros(65, 3, 1, 1).half(),
    ],
)
def test_maps_that_are_none_are_refused(tmp_path, maps):
    path = saved(tmp_path, calibration())
    rewrite(path, maps=maps.contiguous())

    with pytest.raises(ValueError, match="its calibration cannot be read"):
        load_depth_head(path)


def test_maps_and_levels_come_together(tmp_path):
    path = saved(tmp_path, calibration())
    rewrite(path, calibration=None)
    with pytest.raises(ValueError, match="is damaged"):
        load_depth_head(path)
    path = saved(tmp_path, None)
    rewrite(path, calibration=json.dumps({"times": list(TIMES), "consistency": None}))
    with pytest.raises(ValueError, match="is damaged"):
        load_depth_head(path)
