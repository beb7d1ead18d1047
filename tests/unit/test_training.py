"""depth_head/training.py on features that hold the depth, more noisily the later the time."""

import copy

import pytest
import torch

from inner_guidance.depth_head.architectures.pixel_mlp import PixelMLP
from inner_guidance.depth_head.architectures.readout import Readout
from inner_guidance.depth_head.fitting import decay
from inner_guidance.depth_head.metrics import DepthRange, fit_to_label
from inner_guidance.depth_head.training import (
    LAST_TIME,
    LEVELS,
    TrainingSettings,
    draw,
    loss_of,
    train,
)

COUNT, SIZE = 20, (6, 6)
RANGE = DepthRange(1.5, 12.0)


@pytest.fixture
def labels():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(COUNT, 1, 3, 3, generator=generator)
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")


def world(labels, noise=0.5):
    """Features as a UNet's: clear (o1) and blurred (o0), with noise that grows with the time."""

    def features(rows, time, seeds):
        clear = []
        for row, t, seed in zip(rows.tolist(), time.tolist(), seeds.tolist(), strict=True):
            generator = torch.Generator().manual_seed(seed)
            eps = torch.randn(8, *SIZE, generator=generator)
            clear.append(labels[row] * torch.linspace(-3, 3, 8).view(8, 1, 1) + noise * t / 1000 * eps)
        clear = torch.stack(clear)
        blurred = torch.nn.functional.avg_pool2d(clear, 2)
        return {"o0": blurred, "o1": clear, "r0": blurred, "r1": clear, "time": time[:, None].expand(-1, 16)}

    return features


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PixelMLP({"o0": 8, "o1": 8}, strong=("o0", "o1"), weak=("o0",), widths=(16,))


def settings(**changed):
    defaults = {"steps": 150, "batch_size": 4, "learning_rate": 0.01, "seed": 0, "depth_range": RANGE}
    return TrainingSettings(**defaults | changed)


def run(labels, trained=None, on_step=lambda done, losses: None, **changed):
    trained = trained or network()
    return trained, train(trained, world(labels), labels, settings(**changed), on_step)


def test_a_head_learns(labels):
    """Guessing the mean map is off by 0.4."""
    trained, result = run(labels)

    assert not result.interrupted
    assert len(result.losses) == 150
    assert sum(result.losses[-20:]) < 0.5 * sum(result.losses[:20])
    assert result.figures["strong"][50].abs_rel < 0.08
    assert result.figures["strong"][50].abs_rel < result.figures["strong"][800].abs_rel
    assert result.figures["strong"][50].abs_rel < result.figures["weak"][50].abs_rel < 0.25
    assert not trained.training
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_batch_size_1_learns_too(labels):
    _, result = run(labels, batch_size=1, steps=300)
    assert result.figures["strong"][50].abs_rel < 0.1


def test_the_readout_network_learns_in_both_branches(labels):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        readout = Readout({"r0": 8, "r1": 8}, weak=("r0",), embedding=("time", 16), projection=128)
    _, result = run(labels, readout, steps=60, learning_rate=0.003)
    assert result.figures["strong"][50].abs_rel < 0.25
    assert result.figures["weak"][50].abs_rel < 0.3


def test_the_same_seed_gives_the_same_head(labels):
    (first, result), (second, again) = (run(labels, steps=30) for _ in range(2))
    third, _ = run(labels, steps=30, seed=1)
    state = first.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in second.state_dict().items())
    assert not all(torch.equal(value, state[name]) for name, value in third.state_dict().items())
    assert result.figures == again.figures


def test_training_does_not_touch_the_global_generator(labels):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(labels, network(), steps=3)
    assert torch.equal(torch.rand(3), expected)


def test_held_out_images_are_not_trained_on(labels):
    read = world(labels)
    trained_on = set()

    def watching(rows, time, seeds):
        if not set(time.tolist()) <= set(LEVELS):
            trained_on.update(rows.tolist())
        return read(rows, time, seeds)

    result = train(network(), watching, labels, settings(steps=40, held_out=0.25), lambda *_: None)
    assert len(result.held_out) == 5
    assert trained_on == set(range(COUNT)) - set(result.held_out)
    assert set(result.shown) <= set(result.held_out)
    assert result.estimates.shape == (4, len(LEVELS), *SIZE)


@pytest.mark.parametrize(("held_out", "read"), [(0.1, 8), (0.5, 10)])
def test_readings_are_of_held_out_images_and_of_others_if_these_are_few(labels, held_out, read):
    trained, result = run(labels, steps=5, held_out=held_out)

    rows = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))[:read]
    assert result.held_out == rows[: round(held_out * COUNT)].tolist()
    for branch in ("strong", "weak"):
        assert result.readings[branch].shape == (read, len(LEVELS), *SIZE)
        for i, time in enumerate(LEVELS):
            at = torch.full((read,), float(time))
            features = world(labels)(rows, at, 1 + rows)
            expected = trained(features, at, SIZE, branch)[:, 0]
            torch.testing.assert_close(result.readings[branch][:, i], expected)
    assert torch.equal(result.estimates, result.readings["strong"][: len(result.shown)])


def test_two_pairs_are_enough(labels):
    _, result = run(labels[:2], steps=5)
    assert len(result.held_out) == 1
    assert result.estimates.shape == (1, len(LEVELS), *SIZE)


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
        self.at("held out" if set(time.tolist()) <= set(LEVELS) else "training")
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
    assert set(run.result.figures["strong"]) == set(LEVELS)
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
    assert run.result.estimates.shape == (0, len(LEVELS), *SIZE)
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


def test_the_best_state_is_kept_not_the_last(labels):
    """From step 100 on the labels that are trained on are wrong."""
    read, wrong = world(labels), world(1 - labels)
    steps = [0]

    def features(rows, time, seeds):
        spoilt = steps[0] > 100 and not set(time.tolist()) <= set(LEVELS)
        return (wrong if spoilt else read)(rows, time, seeds)

    def on_step(done, losses):
        steps[0] = done

    result = train(network(), features, labels, settings(), on_step)
    assert 60 <= result.best_step <= 105
    assert result.figures["strong"][50].abs_rel < 0.15


def test_aligned_training_forgives_scale_and_shift_but_not_the_sign(labels):
    """Every label has a scale and a shift of its own; the head still puts near above far."""
    generator = torch.Generator().manual_seed(1)
    scale = 0.2 + 0.6 * torch.rand(COUNT, 1, 1, 1, generator=generator)
    shifted = scale * labels + (1 - scale) * torch.rand(COUNT, 1, 1, 1, generator=generator)
    trained, result = (network(), None)
    result = train(trained, world(labels), shifted, settings(aligned=True), lambda *_: None)
    depth = result.estimates[:, 0, None]
    truth = labels[result.shown]

    assert result.figures["strong"][50].abs_rel < 0.1
    for one, goal in zip(depth.flatten(1), truth.flatten(1), strict=True):
        assert torch.corrcoef(torch.stack([one, goal]))[0, 1] > 0.9


def test_the_loss_is_l1_of_both_branches(labels):
    net = network().eval()
    rows, time, seeds = torch.arange(3), torch.tensor([10.0, 300.0, 700.0]), torch.arange(3)
    read = world(labels)(rows, time, seeds), time
    strong, weak = (net(*read, SIZE, branch) for branch in ("strong", "weak"))
    label = labels[:3]

    plain = loss_of(net, read, label, settings())
    expected = (strong - label).abs().mean() + (weak - label).abs().mean()
    torch.testing.assert_close(plain, expected)
    aligned = loss_of(net, read, label, settings(aligned=True))
    torch.testing.assert_close(
        aligned,
        0.1 * expected + sum((fit_to_label(depth, label) - label).abs().mean() for depth in (strong, weak)),
    )


def test_times_are_uniform_below_800():
    generator = torch.Generator().manual_seed(0)
    times = torch.cat([draw(4, generator)[0] for _ in range(2000)])
    assert times.min() >= 0
    assert times.max() < LAST_TIME == 800
    histogram = torch.histc(times, 8, 0, 800) / len(times)
    assert (histogram - 1 / 8).abs().max() < 0.01
    assert draw(1, generator)[0].shape == (1,)


def test_learning_rate_falls():
    rates = [decay(done / 10) for done in range(11)]
    assert (rates[0], rates[-1]) == pytest.approx((1.0, 0.02))
    assert rates == sorted(rates, reverse=True)


def test_features_that_are_not_finite_are_one_sentence(labels):
    def features(rows, time, seeds):
        found = world(labels)(rows, time, seeds)
        found["o0"][0, 0, 0, 0] = torch.inf
        return found

    with pytest.raises(ValueError, match=r"features are not finite at this precision: start ComfyUI with"):
        train(network(), features, labels, settings(), lambda *_: None)


def test_it_trains_where_nodes_run(labels):
    with torch.inference_mode():
        given = labels + 0  # an inference tensor, like everything a node is handed
        trained, result = run(given, network_outside(), steps=20)
    assert result.losses[-1] < result.losses[0]
    assert not any(parameter.is_inference() for parameter in trained.parameters())


def network_outside():
    with torch.inference_mode(False):
        return network()
