"""demo/progress.py: what a training takes from a checkpoint."""

import pytest
import torch
from torch import nn

from inner_guidance.demo.progress import Training, read_checkpoint, write_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "checkpoint.pt"


def training(stage, checkpoint):
    model = nn.Linear(3, 2)
    return Training(stage, model, [torch.optim.AdamW(model.parameters())], checkpoint, minutes=5.0)


def learn(stage, steps=1):
    for _ in range(steps):
        stage.learn(stage.model(torch.ones(1, 3)).square().mean(), rate=0.1, decay=0.9)


def same(x, y):
    return all(torch.equal(x[name], y[name]) for name in y)


def test_a_stage_goes_on_as_if_never_interrupted(checkpoint):
    first = training("decoder", checkpoint)
    learn(first, steps=3)
    assert not first.save_every(minutes=1.0)
    assert first.save_every(minutes=0.0)

    second = training("decoder", checkpoint)

    assert second.step == 3
    assert second.budget.spent == read_checkpoint(checkpoint)["spent"] > 0
    learn(first)
    learn(second)
    assert same(second.model.state_dict(), first.model.state_dict())
    assert same(second.average, first.average)


def test_another_stage_takes_the_weights_and_begins_anew(checkpoint):
    first = training("autoencoder", checkpoint)
    learn(first, steps=3)
    first.save_every(minutes=0.0)

    second = training("decoder", checkpoint)

    assert (second.step, second.budget.spent) == (0, 0.0)
    assert not second.optimisers[0].state
    assert same(second.model.state_dict(), first.model.state_dict())
    assert same(second.average, first.average)


def test_published_weights_are_trained_on(checkpoint):
    weights = nn.Linear(3, 2).state_dict()
    write_checkpoint(checkpoint, model=weights, average=weights)

    restored = training("diffusion", checkpoint)

    assert restored.step == 0
    assert same(restored.model.state_dict(), weights)
    assert same(restored.average, weights)


def test_the_last_state_is_saved_when_the_time_is_used_up(checkpoint):
    stage = training("recogniser", checkpoint)
    stage.budget.spent = 5.0

    assert stage.save_every(minutes=60.0)
    assert training("recogniser", checkpoint).budget.fraction == 1
