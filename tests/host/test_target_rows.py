"""experiments/target_rows.py and starting_noise.py: what the rows change of a target."""

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from inner_guidance.experiments import target_rows
from inner_guidance.experiments.dag_pictures import with_terms
from inner_guidance.experiments.dag_rows import NONE
from inner_guidance.experiments.starting_noise import FIRST_TIME, closest_noise, starting_noises
from inner_guidance.guidance import depth_aware as dag
from inner_guidance.guidance.hinge import Level, hinge_slope
from inner_guidance.host.sampling.frozen_model import with_frozen_model
from inner_guidance.host.steering import dag_gradient
from inner_guidance.nodes.depth_aware_guidance import InnerDepthAwareGuidance
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.node_defaults import execute

ROWS = target_rows.screened()["forms"].rows
TIMES = (1000.0, 700.0, 400.0)


@pytest.fixture
def maps():
    """Depth maps: of the strong branch, of the weak one, of the target."""
    generator = torch.Generator().manual_seed(2)
    return torch.rand(3, 2, 1, 8, 8, generator=generator).unbind()


@pytest.fixture
def settings(maps):
    return SimpleNamespace(target=maps[2])


@pytest.fixture
def term(maps):
    return dag.Term(2.0, lambda strong, _: dag.target_loss(strong, maps[2]))


def at(change, term, settings, time):
    return change(term, settings, torch.full((2,), time))


def test_strengths_fall_and_rise_between_the_first_step_and_the_targets_end(term, settings):
    falling, rising = (
        [at(change, term, settings, time).strength for time in TIMES]
        for change in (target_rows.falling, target_rows.rising)
    )
    assert falling == pytest.approx([2.0, 1.0, 0.0])
    assert rising == pytest.approx([0.0, 1.0, 2.0])


def test_as_close_as_renders_asks_nothing_below_their_level(term, settings, maps):
    level = at(target_rows.as_close_as_renders, term, settings, 200.0).level

    assert isinstance(level, Level)
    assert level.mean.tolist() == pytest.approx([0.016] * 2)
    assert level.deviation.tolist() == pytest.approx([0.012] * 2)
    close, far = (term.loss(maps[2] + off * maps[0], None) for off in (1e-3, 10.0))
    assert 0 < close.max() < 1e-4
    assert hinge_slope(close, level).tolist() == [0, 0]
    assert hinge_slope(far, level).tolist() == [1, 1]


def test_a_target_counts_less_where_the_branches_differ(term, settings, maps):
    strong, weak, target = maps

    found = at(target_rows.where_sure, term, settings, 500.0).loss(strong, weak)

    for i in range(2):
        d, w, y = (m[i].double().numpy().ravel() for m in (strong, weak, target))
        share = 1 / (1 + ((d - w) / 0.027) ** 2)
        share /= share.sum()
        dc, yc = d - share @ d, y - share @ y
        a = np.clip(share @ (yc * dc) / (share @ yc**2), *dag.TARGET_STRETCH)
        assert found[i].item() == pytest.approx(share @ (dc - a * yc) ** 2 / (share @ dc**2), rel=1e-4)


def steered(row):
    """A run of a tiny model by the row's inputs and terms."""
    terms = row.terms or (lambda term, *_: term)
    with mock.patch.object(dag_gradient, "losses", with_terms(terms)):
        (model,) = execute(
            InnerDepthAwareGuidance,
            model=tiny.patcher(),
            depth_head=depth.head(),
            target_depth=depth.target(),
            **row.settings,
        )
        return tiny.sample(model, steps=4)


@pytest.mark.parametrize("name", ["falling", "rising", "where sure"])
def test_terms_act_in_a_run(name):
    plain = steered(replace(ROWS[name], terms=None))
    assert (steered(ROWS[name]) - plain).abs().max() > 1e-3


def test_screened_rows_have_their_baseline_first_and_differ_from_each_other():
    for groups in (target_rows.screened(), target_rows.kept()):
        for group in groups.values():
            assert next(iter(group.rows)) == NONE
            assert len({repr(row) for row in group.rows.values()}) == len(group.rows)


def test_each_image_takes_the_noise_whose_first_estimate_is_closest():
    model, hosted = tiny.patcher(), depth.head()
    noises = starting_noises(tiny.noise(2, 4, 8, 8), 3)
    network = hosted.head.network

    def read(unet):
        time = torch.full((2,), FIRST_TIME)
        features = [unet.features(list(network.taps), 0 * noise, noise, time) for noise in noises]
        return torch.stack([network.branches(f, time, (8, 8), ("strong",))[0] for f in features])

    prompt = tiny.prompt(0)
    depths = with_frozen_model(model, prompt, (2, 4, 8, 8), read)
    target = torch.stack([depths[2, 0], depths[1, 1]])

    chosen = closest_noise(model, prompt, hosted, noises, target)

    assert torch.equal(chosen[0], noises[2, 0])
    assert torch.equal(chosen[1], noises[1, 1])
    assert torch.equal(noises[0], tiny.noise(2, 4, 8, 8))
