"""guidance/attention_spectrum.py against pictures of known spectra, and a reference in float64."""

import cmath
import math

import numpy as np
import pytest
import torch

from inner_guidance.guidance import attention_spectrum as spectrum
from inner_guidance.guidance.attention_spectrum import NOISE
from inner_guidance.guidance.self_attention import resize_nearest


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grey(picture):
    """(H, W) as an image (1, H, W, 3)."""
    return picture[None, ..., None].expand(1, *picture.shape, 3)


def wave(size, across, down, amplitude=0.1, phase=0.3):
    """A sinusoid with so many periods across and down a patch of this size, over four times four patches."""
    x = torch.arange(4 * size, dtype=torch.float64)
    argument = 2 * math.pi * (across * x[None, :] + down * x[:, None]) / size + phase
    return 0.5 + amplitude * torch.cos(argument)


def reference_log_magnitudes(patch):
    """The definition, term by term: a Fourier sum for each pair of frequencies, rings by distance."""
    size = len(patch)
    rings = [[] for _ in range(size // 2 + 1)]
    half = size // 2
    for v in range(-half, half):
        for u in range(-half, half):
            total = sum(
                patch[y][x] * cmath.exp(-2j * math.pi * (u * x + v * y) / size)
                for y in range(size)
                for x in range(size)
            )
            distances = [abs(math.hypot(u, v) - k) for k in range(half + 1)]
            nearest = distances.index(min(distances))
            if distances[nearest] <= 0.5:
                rings[nearest].append(math.log10(math.sqrt(abs(total / size) ** 2 + NOISE**2)))
    return [np.mean(ring) for ring in rings]


def test_log_magnitudes_are_the_fourier_sums():
    patch = random(8, 8)

    found = spectrum.log_magnitudes(patch)

    np.testing.assert_allclose(found.numpy(), reference_log_magnitudes(patch.tolist()), rtol=1e-9)


@pytest.mark.parametrize("size", spectrum.PATCH_SIZES)
@pytest.mark.parametrize(("across", "down"), [(1, 0), (0, 2), (3, 0), (2, 2), (0, 4)])
def test_a_sinusoid_has_its_energy_at_its_radius(size, across, down):
    logs = spectrum.log_magnitudes(spectrum.patches(wave(size, across, down)[None], size))[0, 0, 0]

    power = 10 ** (2 * logs)
    power[0] = 0  # the mean brightness
    assert int(power.argmax()) == round(math.hypot(across, down))
    others = [k for k in range(1, size // 2 + 1) if k != round(math.hypot(across, down))]
    np.testing.assert_allclose(logs[others], math.log10(NOISE), atol=1e-9)


@pytest.mark.parametrize("size", spectrum.PATCH_SIZES)
def test_white_noise_is_flat_and_has_its_standard_deviation_at_every_size(size):
    logs = spectrum.log_magnitudes(spectrum.patches(0.1 * random(64, 64, 64), size)).flatten(0, 2)

    # E log10 |F| of a complex Gaussian: half of (ln 1 - gamma) / ln 10, times its standard deviation.
    expected = math.log10(0.1) - 0.5 * np.euler_gamma / math.log(10)
    inner = logs.mean(0)[1:-1]  # 0 and half a cycle hold real numbers, whose logarithm is smaller
    np.testing.assert_allclose(inner, expected, atol=0.03)


def test_noise_of_8_bits_is_the_least_there_is():
    flat = spectrum.log_magnitudes(torch.full((16, 16), 0.5, dtype=torch.float64))

    np.testing.assert_allclose(flat[1:], math.log10(NOISE), atol=1e-6)
    picture = 0.5 + 0.1 * random(64, 64)
    assert float(((picture * 255).round() / 255 - picture).std()) == pytest.approx(NOISE, rel=0.03)


def test_luminance_is_that_of_rec_709():
    colours = torch.eye(3).view(1, 1, 3, 3)

    assert spectrum.luminance(colours)[0, 0].tolist() == pytest.approx([0.2126, 0.7152, 0.0722])


def test_masks_of_objects_are_what_is_lighter_than_grey():
    masks = torch.tensor([[[0.2, 0.5, 0.51, 1.0]]])

    assert spectrum.object_masks(masks, (2, 4), 3).tolist() == [[[0, 0, 1, 1]] * 2] * 3


def spectrum_of(size, *excesses):
    """With these differences on the rings, inside psi 1 and, all but the first one lower, inside psi 1.3."""
    lower = [excesses[0], *(excess - 1 for excess in excesses[1:])]
    everywhere = spectrum.Curve(9, [-1.0] * len(excesses))
    inside = {
        psi: spectrum.Curve(4, [-1.0 + excess for excess in of_psi])
        for psi, of_psi in ((1.0, excesses), (1.3, lower))
    }
    return spectrum.Spectrum(size, everywhere, inside)


def test_the_claim_in_words_names_the_sizes_for_which_it_holds():
    found = [spectrum_of(8, -0.5, 0.1, 0.2), spectrum_of(16, 0.5, 0.1, 0.2), spectrum_of(32, 0.5, 0.1, -0.1)]

    lines = spectrum.in_words(found, {1.0: spectrum.Overlap(0.5, 0.25, 0.125)})

    assert lines == [
        "Attention > 1: more at every frequency in patches of 8 px, 16 px. IoU with objects 0.50, of random "
        "masks 0.25 ± 0.12.",
        "Attention > 1.3: more at every frequency in patches of no size.",
    ]


def test_numbers_are_those_of_the_curves():
    found = spectrum.as_numbers(
        [spectrum_of(4, 0.5, 0.12345678, 0.2)], {1.0: spectrum.Overlap(0.5, 0.25, 0.125)}
    )

    assert found["objects"] == [{"threshold": 1.0, "iou": 0.5, "random_iou": 0.25, "random_iou_std": 0.125}]
    (patches,) = found["patches"]
    assert patches["cycles_per_pixel"] == [0, 0.25, 0.5]
    assert patches["all"] == {"patches": 9, "log10_magnitude": [-1, -1, -1]}
    first, second = patches["inside"]
    assert first == {
        "threshold": 1.0,
        "patches": 4,
        "log10_magnitude": [-0.5, -0.87654, -0.8],
        "more_at_every_frequency": True,
    }
    assert not second["more_at_every_frequency"]


class TestSpectra:
    """A picture whose left half has fine detail and whose right half has none; attention there or not."""

    fine, plain = wave(8, 3, 0), torch.full((32, 32), 0.5, dtype=torch.float64)
    images = grey(torch.cat([fine, plain], dim=1))

    def attention(self, left, right):
        return torch.tensor([[[left, right]]], dtype=torch.float64).expand(1, 1, 2)

    def test_inside_is_the_part_that_is_attended_to(self):
        for found in spectrum.spectra(self.images, self.attention(1.5, 0.5), (1.0, 1.3)):
            assert found.everywhere.patches == 2 * (32 // found.size) ** 2
            for psi in (1.0, 1.3):
                ring = 3 * found.size // 8
                assert found.inside[psi].patches == (32 // found.size) ** 2
                assert found.excess(psi)[ring] == max(found.excess(psi)) > 0.04

    def test_the_claim_holds_only_if_it_holds_on_every_ring(self):
        noisy = self.images + 0.02 * random(1, 32, 64, 1).expand(-1, -1, -1, 3)
        noisy[:, :, 32:] = 0.5

        (claimed,) = spectrum.spectra(noisy, self.attention(1.5, 0.5), (1.0,), (16,))
        (refused,) = spectrum.spectra(noisy, self.attention(0.5, 1.5), (1.0,), (16,))

        assert claimed.more_at_every_frequency(1.0)
        assert not refused.more_at_every_frequency(1.0)
        assert all(value < 0 for value in refused.excess(1.0)[1:])

    def test_a_threshold_without_patches_is_not_a_number(self):
        (found,) = spectrum.spectra(self.images, self.attention(1.5, 0.5), (2.0,), (8,))

        assert found.inside[2.0].patches == 0
        assert all(map(math.isnan, found.excess(2.0)))
        assert not found.more_at_every_frequency(2.0)

    def test_a_patch_that_the_mask_cuts_is_outside(self):
        attention = torch.tensor([[[1.5, 1.5, 1.5, 0.2, 0.2, 0.2, 0.2, 0.2]]], dtype=torch.float64)

        counts = {
            found.size: found.inside[1.0].patches
            for found in spectrum.spectra(self.images, attention, (1.0,))
        }

        assert counts == {8: 3 * 4, 16: 1 * 2, 32: 0}

    def test_sizes_beyond_the_picture_are_left_out_and_the_rest_is_cut_off(self):
        image = grey(random(20, 35))

        found = spectrum.spectra(image, torch.full((1, 2, 2), 2.0), (1.0,))

        assert [(s.size, s.everywhere.patches) for s in found] == [(8, 2 * 4), (16, 1 * 2)]
        assert [s.inside[1.0] for s in found] == [s.everywhere for s in found]

    def test_frequencies(self):
        (found,) = spectrum.spectra(self.images, self.attention(2, 0), (1.0,), (8,))

        assert found.frequencies == [0, 0.125, 0.25, 0.375, 0.5]


class TestOverlap:
    objects = torch.zeros(1, 64, 64)
    objects[:, 16:48, 16:32] = 1
    seen = torch.full((1, 8, 8), 0.2)
    seen[:, 2:6, 2:4] = 3.0

    def test_of_a_mask_that_is_the_object(self):
        found = spectrum.overlap(self.seen, 1.0, self.objects, draws=200, seed=0)

        assert found.iou == 1
        # 8 of 64 tokens: a random mask shares 1 of its 8 with the object, on the average.
        assert found.random == pytest.approx(1 / 15, abs=0.015)
        chances = [math.comb(8, shared) * math.comb(56, 8 - shared) / math.comb(64, 8) for shared in range(9)]
        ious = np.array([shared / (16 - shared) for shared in range(9)])
        deviation = math.sqrt(chances @ (ious - chances @ ious) ** 2)
        assert found.random_std == pytest.approx(deviation, rel=0.15)

    def test_of_a_mask_beside_the_object(self):
        found = spectrum.overlap(self.seen.flip(-1), 1.0, self.objects, draws=20, seed=0)

        assert found.iou == 0

    def test_is_intersection_over_union(self):
        half = torch.zeros(1, 8, 8)
        half[:, 2:6, 2:3] = half[:, 2:6, 4:5] = 3.0

        found = spectrum.overlap(half, 1.0, self.objects, draws=1, seed=0)

        assert found.iou == pytest.approx(4 / 12)

    @pytest.mark.parametrize("size", [(64, 64), (70, 53)])
    def test_is_that_of_the_resized_mask(self, size):
        objects = (random(2, *size) > 0.3).float()
        attention = random(2, 8, 8, seed=1)
        mask = resize_nearest((attention > 0.2).float(), size)

        found = spectrum.overlap(attention, 0.2, objects, draws=1, seed=0)

        expected = float((mask * objects).sum() / torch.maximum(mask, objects).sum())
        assert found.iou == pytest.approx(expected, rel=1e-6)

    def test_of_nothing(self):
        found = spectrum.overlap(self.seen, 9.0, torch.zeros(1, 64, 64), draws=2, seed=0)

        assert found == (0, 0, 0)

    def test_draws_are_those_of_the_seed(self):
        first, again, other = (spectrum.overlap(self.seen, 1.0, self.objects, 20, seed) for seed in (0, 0, 1))

        assert first == again
        assert first.random != other.random
