"""depth_head/training.py when the user presses Cancel, at any place, or another error occurs."""

import copy

import pytest
import torch

from inner_guidance.depth_head.training import CHECKED_TIMES, train
from inner_guidance.tests.support.head_training import SIZE, depth_labels, network, settings, world


@pytest.fixture
def labels():
    return depth_labels()


class Pressed(BaseException):
    """As the host's in 0.30.0: no Exception."""


class Interrupted:
    """A training of 150 steps, checked after every 15, during which the user presses Cancel at one place.

    place: "on_step", "training" or "held out" (a pass for either). count: of these calls before it.
    """

    def __init__(self, labels, place, count):
        self.read, self.place, self.count = world(labels), place, count
        self.network, self.losses, self.states = network(), [], {}
        self.result = train(self.network, self.features, labels, settings(), self.on_step, Pressed)

    def at(self, place):
        self.states[len(self.losses)] = copy.deepcopy(self.network.state_dict())
        if place == self.place:
            self.count -= 1
            if self.count == -1:
                raise Pressed

    def on_step(self, done, losses):
        assert len(losses) == done
        self.losses = losses
        self.at("on_step")

    def features(self, rows, time, seeds):
        self.at("held out" if set(time.tolist()) <= set(CHECKED_TIMES) else "training")
        return self.read(rows, time, seeds)


@pytest.mark.parametrize(
    ("place", "count", "steps", "kept"),
    [
        ("on_step", 1, 1, {1}),
        ("on_step", 100, 100, {60, 75, 90}),
        ("training", 1, 1, {1}),
        ("training", 100, 100, {60, 75, 90}),
        ("held out", 0, 15, {15}),
        ("held out", 3, 15, {15}),
        ("held out", 4, 30, {15}),
        ("held out", 4 * 6 + 2, 105, {60, 75, 90}),
    ],
)
def test_an_interruption_anywhere_keeps_the_best_so_far(labels, place, count, steps, kept):
    """A check takes four passes, one a level."""
    run = Interrupted(labels, place, count)
    state = run.network.state_dict()

    assert run.result.interrupted
    assert len(run.result.losses) == steps
    assert run.result.best_step in kept
    expected = run.states[run.result.best_step]
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    assert set(run.result.figures["strong"]) == set(CHECKED_TIMES)
    assert not run.network.training
    assert not any(parameter.requires_grad for parameter in run.network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("count", [40, 46])
def test_an_interruption_of_the_last_measurement_keeps_the_head_without_figures(labels, count):
    """Ten checks of four passes, then four passes for the figures and eight for the readings."""
    run = Interrupted(labels, "held out", count)
    whole = Interrupted(labels, "held out", 52)

    assert run.result.interrupted
    assert not whole.result.interrupted
    assert (run.result.figures, run.result.shown, run.result.readings) == ({}, [], {})
    assert run.result.estimates.shape == (0, len(CHECKED_TIMES), *SIZE)
    expected = whole.network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in run.network.state_dict().items())


@pytest.mark.parametrize("place", ["on_step", "training"])
def test_an_interruption_before_the_first_step_is_passed_on(labels, place):
    with pytest.raises(Pressed):
        Interrupted(labels, place, 0)


def test_another_error_is_passed_on(labels):
    def on_step(done, losses):
        if done == 20:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(network(), world(labels), labels, settings(), on_step, Pressed)
