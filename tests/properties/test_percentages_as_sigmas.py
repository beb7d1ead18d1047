"""Percentages and sigmas of every kind of schedule."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inner_guidance.host.sampling import schedule, sigma_ranges
from inner_guidance.tests.support import tiny_models as tiny

PERCENT = st.floats(0, 1)
KINDS = [("small", "EPS"), ("small", "V_PREDICTION_EDM"), ("small", "FLOW"), ("flux", "FLUX")]


def sampling(kind, model_type):
    return tiny.patcher(kind, model_type).get_model_object("model_sampling")


@pytest.mark.parametrize(("kind", "model_type"), KINDS)
@given(begin=PERCENT, start=PERCENT, end=PERCENT)
def test_a_range_is_in_order_and_holds_the_first_step_where_it_begins_at_0(
    kind, model_type, begin, start, end
):
    model_sampling = sampling(kind, model_type)
    first = float(model_sampling.percent_to_sigma(begin)) if begin > 0 else math.inf

    within = sigma_ranges.SigmaRange.from_percent(model_sampling, start, end, first)

    assert not math.isnan(within.start + within.end)
    assert (within.start >= within.end) == (start < end)
    if begin > 0:
        from_0 = sigma_ranges.SigmaRange.from_percent(model_sampling, 0.0, end, first)
        assert end == 0 or first in from_0


@pytest.mark.parametrize(("kind", "model_type"), KINDS)
@given(percent=PERCENT)
def test_the_percent_of_a_sigma_has_that_sigma(kind, model_type, percent):
    model_sampling = sampling(kind, model_type)
    sigma = min(float(model_sampling.percent_to_sigma(percent)), float(model_sampling.sigma_max))

    found = sigma_ranges.percent_at(model_sampling, sigma)

    assert 0 <= found <= 1
    again = min(float(model_sampling.percent_to_sigma(found)), float(model_sampling.sigma_max))
    assert again == pytest.approx(sigma, rel=1e-3, abs=1.01 * float(model_sampling.sigma_min))


@given(
    sigmas=st.lists(st.floats(1e-3, 100), min_size=1, max_size=8, unique=True),
    rising=st.booleans(),
    data=st.data(),
)
def test_every_sigma_of_a_schedule_is_its_own_step(sigmas, rising, data):
    ordered = sorted(sigmas, reverse=not rising)
    spread = all(abs(a - b) > 1e-3 * max(a, b) for a, b in itertools.pairwise(ordered))
    steps = torch.tensor(ordered if rising else [*ordered, 0.0])
    number = data.draw(st.integers(0, len(ordered) - 1))

    found = schedule.step_of(float(steps[number]), steps)

    assert 0 <= found < len(steps)
    assert found == number or not spread
