"""experiments/paired_bootstrap.py: intervals are those of statistics; pairing cancels what seeds share."""

import pytest
import torch

from inner_guidance.experiments.paired_bootstrap import bootstrap, change, mean, resamples


@pytest.fixture
def seeds():
    """A figure of 400 pictures that differs much between seeds."""
    return 10 * torch.randn(400, generator=torch.Generator().manual_seed(1))


def changed(values, baseline):
    drawn = resamples(len(values), 2000)
    return change(bootstrap(mean, values, drawn), bootstrap(mean, baseline, drawn))


def test_the_interval_of_a_mean_is_that_of_the_standard_error(seeds):
    noise = torch.randn(400, generator=torch.Generator().manual_seed(2))

    found = changed(seeds + 0.3 + noise, seeds)

    error = noise.std() / 20
    assert found.change == pytest.approx(0.3 + noise.mean().item(), abs=1e-4)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error.item(), rel=0.06)
    assert found.is_certain


def test_what_seeds_share_is_not_uncertain(seeds):
    found = changed(seeds + 0.01, seeds)

    assert found.low == pytest.approx(0.01, abs=1e-4)
    assert found.high == pytest.approx(0.01, abs=1e-4)


def test_no_difference_is_not_certain(seeds):
    assert not changed(seeds.flip(0), seeds).is_certain


def test_resamples_are_the_same_at_every_call():
    assert torch.equal(resamples(7, 3), resamples(7, 3))
    assert not torch.equal(resamples(7, 3)[0], resamples(7, 3)[1])


def test_nan_does_not_count():
    assert mean(torch.tensor([1.0, torch.nan, 2.0])) == 1.5
