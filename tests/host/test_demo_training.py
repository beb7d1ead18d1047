"""Which scenes, prompts and timesteps the demo UNet is trained on."""

import numpy as np
import pytest
import torch

from inner_guidance.demo.denoisers import TextToLatent
from inner_guidance.demo.diffusion import EMPTY_PROMPTS, PARTIAL_PROMPTS, _sample
from inner_guidance.demo.text import EMPTY

SOLIDS = (1, 1, 2, 4)
DRAWN = 20_000


@pytest.fixture(scope="module")
def drawn():
    """For each sample: the scene, and how many of its words the prompt has."""
    phrases = [[[1]] * solids + [[4], [5]] for solids in SOLIDS]
    rng = np.random.default_rng(0)
    samples = [_sample(phrases, np.cumsum(SOLIDS), rng) for _ in range(DRAWN)]
    return [(row, int((tokens != EMPTY).sum())) for row, tokens in samples]


def shares(rows):
    return np.bincount(rows, minlength=len(SOLIDS)) / len(rows)


def test_full_captions_are_drawn_in_proportion_to_the_solids_of_their_scene(drawn):
    full = [row for row, words in drawn if words == SOLIDS[row] + 2]
    # Few partial prompts have all phrases: one in eight of a scene with one solid, fewer of the others.
    assert len(full) / DRAWN == pytest.approx(1 - EMPTY_PROMPTS - PARTIAL_PROMPTS, abs=0.03)
    assert shares(full) == pytest.approx(np.array(SOLIDS) / sum(SOLIDS), abs=0.03)


def test_without_a_prompt_all_scenes_are_equally_likely(drawn):
    empty = [row for row, words in drawn if words == 0]
    assert len(empty) / DRAWN == pytest.approx(EMPTY_PROMPTS, abs=0.03)
    assert shares(empty) == pytest.approx(np.full(4, 0.25), abs=0.04)


def test_a_partial_prompt_has_half_of_the_phrases(drawn):
    partial = [words / 6 for row, words in drawn if row == 3 and 0 < words < 6]
    assert np.mean(partial) == pytest.approx(0.5, abs=0.03)


def test_timesteps_are_three_times_as_dense_at_the_last_as_at_the_first():
    torch.manual_seed(0)
    seen = []

    class SeenTimes(torch.nn.Module):
        def forward(self, x, t, context):
            seen.append(t)
            return x

    model = TextToLatent()
    model.unet = SeenTimes()
    with torch.inference_mode(False):
        for _ in range(100):
            model.loss(torch.zeros(40, 4, 2, 2), torch.zeros(40, 16, dtype=torch.long))
    times = torch.cat(seen) / 1000
    counts = torch.histc(times, bins=4, min=0, max=1) / len(times)
    # The integral of 0.5 + t over quarters.
    assert counts.tolist() == pytest.approx([0.15625, 0.21875, 0.28125, 0.34375], abs=0.01)
