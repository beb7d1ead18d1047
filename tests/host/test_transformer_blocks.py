"""experiments/transformer_blocks.py: its heads learn from what they read, and each figure is in its cell."""

import argparse

import pytest
import torch

from inner_guidance.depth_head.training import CHECKED_TIMES, LAST_TIME
from inner_guidance.experiments import transformer_blocks
from inner_guidance.experiments.transformer_blocks import CENTRED, heads, report
from inner_guidance.experiments.transformer_features import Draws, uniform_times
from inner_guidance.experiments.transformer_heads import LABELS, Head, Trial, figures_file


def random(*shape, seed):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def trial(tmp_path):
    """Block b1 shows depth in one of its channels, block b0 is noise."""

    def draws(labels, which, times, seed):
        features = {name: random(len(which), 4, 4, 4, seed=seed + i) for i, name in enumerate(("b0", "b1"))}
        features["b1"][:, :1] += 4 * labels[which]
        return Draws(features, times, which)

    labels, judged = random(LABELS, 1, 4, 4, seed=0), random(8, 1, 4, 4, seed=1)
    which = torch.arange(200) % LABELS
    judged_draws = {
        time: draws(judged, torch.arange(8), torch.full((8,), float(time)), seed=time)
        for time in CHECKED_TIMES
    }
    channels = {"b0": 4, "b1": 4}
    with torch.inference_mode(False):
        yield Trial(
            30, tmp_path, channels, labels, judged, draws(labels, which, uniform_times(200), 2), judged_draws
        )


def test_a_head_learns_from_its_block_alone(trial):
    blind, seeing = trial.figures(Head(("b0",))), trial.figures(Head(("b1",)))

    for time in CHECKED_TIMES:
        assert seeing[str(time)] < 0.8 * blind[str(time)]


def test_figures_are_kept(trial):
    head = Head(("b1",), token_norm=False, seed=2)
    path = figures_file(trial.folder, trial.steps, head)
    path.parent.mkdir()
    path.write_text('{"50": 0.5}', encoding="utf-8")

    assert trial.figures(head) == {"50": 0.5}
    others = [head._replace(token_norm=True), head._replace(seed=0), head._replace(blocks=("b0",))]
    assert path not in [figures_file(trial.folder, trial.steps, other) for other in others]


def test_times_fill_their_range():
    parts = uniform_times(800).sort().values / LAST_TIME * 800

    torch.testing.assert_close(parts, torch.arange(800) + 0.5, atol=0.5, rtol=0)


def test_figures_are_in_the_cell_of_their_head(monkeypatch):
    monkeypatch.setattr(transformer_blocks, "checksum", lambda path: "0" * 12)
    figures = {
        head: dict.fromkeys(map(str, CHECKED_TIMES), number / 1000) for number, head in enumerate(heads())
    }

    lines = report(argparse.Namespace(steps=600, judged=128), figures)

    def value(head):
        return figures[head]["50"]

    stream = Head(("b0",), token_norm=False)
    assert any(
        line.startswith(f"| b0 | {value(stream):.3f} / {value(Head(('b0',))):.3f} |") for line in lines
    )
    several = [value(Head(CENTRED, seed=seed)) for seed in range(5)]
    cell = f"{sum(several) / 5:.3f} ({', '.join(f'{one:.3f}' for one in several)})"
    assert any(line.startswith(f"| b2, b3, b4 | {cell} |") for line in lines)
