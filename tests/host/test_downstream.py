"""experiments/downstream.py: a network learns from pairs, the same one from the same seed."""

import pytest
import torch

from inner_guidance.demo.depth_judge import judge
from inner_guidance.experiments import downstream


@pytest.fixture
def pairs():
    """Grey pictures, as bright as their depth, which falls from the left to the right or back."""
    slope = torch.linspace(0.1, 0.9, 32).expand(32, 32)
    depth = torch.stack([slope, slope.flip(-1), slope.T, slope.T.flip(0)])[:, None]
    pictures = depth.repeat_interleave(8, -1).repeat_interleave(8, -2).expand(-1, 3, -1, -1)
    return (pictures.movedim(1, -1) * 255).to(torch.uint8), depth


def test_a_network_learns_the_depth_of_pictures(pairs, monkeypatch):
    monkeypatch.setattr(downstream, "STEPS", 40)
    monkeypatch.setattr(downstream, "PAIRS_OF_A_STEP", 4)
    network = downstream.trained(*pairs, 0)

    pictures, depth = pairs
    constant = float((depth - 0.5).abs().mean())
    assert float((judge(network, pictures).depth - depth).abs().mean()) < 0.25 * constant


def test_results_are_kept_by_all_that_makes_them(pairs, monkeypatch, tmp_path):
    monkeypatch.setattr(downstream, "STEPS", 2)
    first = downstream.kept_errors(tmp_path, pairs, pairs, seed=0)
    other = downstream.kept_errors(tmp_path, pairs, pairs, seed=1)
    monkeypatch.setattr(downstream, "trained", None)

    torch.testing.assert_close(downstream.kept_errors(tmp_path, pairs, pairs, seed=0), first, rtol=0, atol=0)
    assert not torch.equal(first, other)
