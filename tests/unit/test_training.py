"""depth_head/training.py on features that hold the depth, more noisily the later the time."""

import pytest
import torch

from inner_guidance.depth_head.architectures.readout import Readout
from inner_guidance.depth_head.fitting import decay, draw_times, stratified
from inner_guidance.depth_head.metrics import fit_to_label
from inner_guidance.depth_head.training import (
    CHECKED_TIMES,
    LAST_TIME,
    loss_of,
    train,
)
from inner_guidance.tests.support.head_training import COUNT, SIZE, depth_labels, network, settings, world


@pytest.fixture
def labels():
    return depth_labels()


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
        if not set(time.tolist()) <= set(CHECKED_TIMES):
            trained_on.update(rows.tolist())
        return read(rows, time, seeds)

    result = train(network(), watching, labels, settings(steps=40, held_out=0.25), lambda *_: None)
    assert len(result.held_out) == 5
    assert trained_on == set(range(COUNT)) - set(result.held_out)
    assert set(result.shown) <= set(result.held_out)
    assert result.estimates.shape == (4, len(CHECKED_TIMES), *SIZE)


@pytest.mark.parametrize(("held_out", "read"), [(0.1, 8), (0.5, 10)])
def test_readings_are_of_held_out_images_and_of_others_if_these_are_few(labels, held_out, read):
    trained, result = run(labels, steps=5, held_out=held_out)

    rows = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))[:read]
    assert result.held_out == rows[: round(held_out * COUNT)].tolist()
    for branch in ("strong", "weak"):
        assert result.readings[branch].shape == (read, len(CHECKED_TIMES), *SIZE)
        for i, time in enumerate(CHECKED_TIMES):
            at = torch.full((read,), float(time))
            features = world(labels)(rows, at, 1 + rows)
            expected = trained(features, at, SIZE, branch)[:, 0]
            torch.testing.assert_close(result.readings[branch][:, i], expected)
    assert torch.equal(result.estimates, result.readings["strong"][: len(result.shown)])


def test_two_pairs_are_enough(labels):
    _, result = run(labels[:2], steps=5)
    assert len(result.held_out) == 1
    assert result.estimates.shape == (1, len(CHECKED_TIMES), *SIZE)


def test_the_best_state_is_kept_not_the_last(labels):
    """From step 100 on the labels that are trained on are wrong."""
    read, wrong = world(labels), world(1 - labels)
    steps = [0]

    def features(rows, time, seeds):
        spoilt = steps[0] > 100 and not set(time.tolist()) <= set(CHECKED_TIMES)
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


def test_times_are_uniform_below_800_and_each_batch_has_one_in_every_quarter():
    generator = torch.Generator().manual_seed(0)
    batches = [draw_times(4, LAST_TIME, generator)[0] for _ in range(2000)]
    assert all((batch // 200).sort().values.tolist() == [0, 1, 2, 3] for batch in batches)
    times = torch.cat(batches)
    assert times.min() >= 0
    assert times.max() < LAST_TIME == 800
    histogram = torch.histc(times, 8, 0, 800) / len(times)
    assert (histogram - 1 / 8).abs().max() < 0.01
    assert draw_times(1, LAST_TIME, generator)[0].shape == (1,)


def test_a_number_below_1_is_not_rounded_to_1():
    """Time 1000 is infinite noise for EDM; in float32, 255 and the number that this seed draws are 256."""
    assert 0.999 < stratified(256, torch.Generator().manual_seed(169793)).max() < 1


def test_learning_rate_falls():
    rates = [decay(done / 10) for done in range(11)]
    assert (rates[0], rates[-1]) == pytest.approx((1.0, 0.02))
    assert rates == sorted(rates, reverse=True)


def test_it_trains_where_nodes_run(labels):
    with torch.inference_mode():
        given = labels + 0  # an inference tensor, like everything a node is handed
        trained, result = run(given, network_outside(), steps=20)
    assert result.losses[-1] < result.losses[0]
    assert not any(parameter.is_inference() for parameter in trained.parameters())


def network_outside():
    with torch.inference_mode(False):
        return network()
