"""Apple's MPS has no float64: the pack makes no such tensor where it samples, reads depth or trains."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inner_guidance.depth_head.metrics import DepthRange, measure
from inner_guidance.depth_head.prior import schedule
from inner_guidance.nodes.depth_estimate import InnerDepthEstimate
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.node_defaults import execute

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("guidance", "depth_head", "host")
# Made and used on the CPU, whatever the device.
ON_THE_CPU = {("prior.py", "schedule"), ("metrics.py", "measure"), ("metrics.py", "metres")}


class NoFloat64(TorchDispatchMode):
    """Raises where code in ROOMS makes a tensor in double precision, except for functions of `on_the_cpu`."""

    def __init__(self, on_the_cpu=ON_THE_CPU):
        super().__init__()
        self.on_the_cpu = on_the_cpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        doubles = (torch.float64, torch.complex128)
        if any(isinstance(t, torch.Tensor) and t.dtype in doubles for t in tree_leaves(out)):
            frame = sys._getframe(1)
            while "/torch/" in frame.f_code.co_filename:
                frame = frame.f_back
            path = Path(frame.f_code.co_filename)
            inside = path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ROOMS
            where = path.name, frame.f_code.co_name
            if inside and where not in self.on_the_cpu:
                raise TypeError(f"float64 in {where}: {func}")
        return out


def test_the_guard_sees_float64():
    with NoFloat64(on_the_cpu=()), pytest.raises(TypeError, match="schedule"):
        schedule()


@pytest.mark.parametrize("mode", ["robust", "paper"])
def test_guided_runs(mode):
    settings = {
        "depth_prior": depth.prior(),
        "target_depth": depth.target(),
        "target_mask": torch.ones(1, 8, 8),
    }
    model = depth.depth_guided(tiny.patcher(), mode=mode, **settings)
    for mask in ("attention", "random", "high frequency"):
        model = tiny.guided(model, mask=mask, space="v" if mask == "random" else "eps")
    with NoFloat64():
        image = tiny.sample(model, tiny.noise(1, 4, 16, 16), steps=2, denoise=0.5, sampler="heun")

    assert image.isfinite().all()


def test_records_of_attention_features_and_depth():
    model, attention = rec.record_attention(tiny.patcher())
    model, features = rec.record_features(model, depth_head=depth.head())
    with NoFloat64():
        tiny.sample(model, steps=1)

    assert len(rec.steps_of(attention)) == len(rec.steps_of(features)) == 1


def test_depth_estimates():
    with NoFloat64():
        _, _, found = execute(
            InnerDepthEstimate,
            model=tiny.patcher(),
            depth_head=depth.head(),
            latent={"samples": tiny.noise(1, 4, 16, 16)},
        )

    assert found.isfinite().all()


def test_depth_is_judged_on_the_cpu():
    """`measure` needs double precision, and what it is given may lie on the device."""
    left = []

    class Watched(torch.Tensor):
        def cpu(self):
            left.append(True)
            return super().cpu().as_subclass(torch.Tensor)

    maps = torch.rand(1, 1, 8, 8)
    measure(maps.as_subclass(Watched), maps.as_subclass(Watched), DepthRange(1.0, 10.0))

    assert len(left) == 2
