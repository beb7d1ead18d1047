"""guidance/self_attention.py against references written from the paper, in float64."""

import math

import numpy as np
import pytest
import torch

from inner_guidance.guidance import attention_chunks
from inner_guidance.guidance import self_attention as sag
from inner_guidance.tests.support.reference_blur import reference_blur


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference_received(q, k, bias=None):
    """The explicit (N, N) attention matrix, its mean over the heads, its sum over the queries."""
    q, k = q.double().numpy(), k.double().numpy()
    logits = np.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
    if bias is not None:
        logits = logits + bias.numpy()
    a = np.exp(logits - logits.max(-1, keepdims=True))
    a /= a.sum(-1, keepdims=True)
    return torch.from_numpy(a.mean(1).sum(1))


class TestReceivedAttention:
    def test_is_the_head_averaged_column_sum(self):
        q, k = random(2, 3, 20, 8), random(2, 3, 20, 8, seed=1)
        expected = reference_received(q, k)

        received = sag.received_attention(q.float(), k.float())

        assert received.dtype == torch.float32
        torch.testing.assert_close(received.double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(received.mean(1), torch.ones(2))

    @pytest.mark.parametrize("chunk", [1, 7, 60, 61, 1200])
    def test_does_not_depend_on_the_chunks(self, monkeypatch, chunk):
        q, k = random(3, 2, 30, 4), random(3, 2, 10, 4, seed=1)
        monkeypatch.setattr(attention_chunks, "CHUNK_ELEMENTS", chunk)

        received = sag.received_attention(q.float(), k.float())

        torch.testing.assert_close(
            received.double(), reference_received(q, k) * 10 / 30, rtol=1e-5, atol=1e-6
        )

    def test_never_holds_more_logits_than_a_chunk(self, monkeypatch):
        sizes = []
        matmul = torch.Tensor.__matmul__
        monkeypatch.setattr(
            torch.Tensor, "__matmul__", lambda a, b: sizes.append((r := matmul(a, b)).numel()) or r
        )
        monkeypatch.setattr(attention_chunks, "CHUNK_ELEMENTS", 4 * 256 * 8)

        sag.received_attention(torch.randn(2, 4, 256, 8), torch.randn(2, 4, 256, 8))

        assert max(sizes) == 4 * 256 * 8
        assert sum(sizes) == 2 * 4 * 256 * 256

    def test_half_precision_logits_do_not_overflow(self):
        q = torch.full((1, 1, 4, 64), 40.0, dtype=torch.float16)  # q . k is 102400, beyond float16

        torch.testing.assert_close(sag.received_attention(q, q), torch.ones(1, 4))

    def test_merged_queries_keep_the_mean_at_one(self):
        received = sag.received_attention(random(1, 2, 9, 4).float(), random(1, 2, 16, 4, seed=1).float())

        torch.testing.assert_close(received.mean(), torch.tensor(1.0))

    def test_masks(self):
        q, k = random(2, 2, 6, 4), random(2, 2, 6, 4, seed=1)
        keep = torch.rand(2, 1, 1, 6, generator=torch.Generator().manual_seed(2)) > 0.3
        bias = torch.zeros(2, 1, 1, 6, dtype=torch.float64).masked_fill(~keep, -1e9)
        expected = reference_received(q, k, bias)

        for attn_mask in (keep, bias.float()):
            received = sag.received_attention(q.float(), k.float(), attn_mask)
            torch.testing.assert_close(received.double(), expected, rtol=1e-5, atol=1e-6)

    def test_grouped_queries(self):
        q, k = random(1, 4, 6, 8), random(1, 2, 6, 8, seed=1)

        received = sag.received_attention(q.float(), k.float())

        expected = reference_received(q, k.repeat_interleave(2, dim=1))
        torch.testing.assert_close(received.double(), expected, rtol=1e-5, atol=1e-6)


def test_layers_are_averaged_on_the_finest_grid():
    coarse, fine = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]])

    average = sag.average_on_finest_grid([coarse, fine])

    assert average.tolist() == [[[0.5, 1.0, 2.5, 3.0], [2.5, 3.0, 4.5, 5.0]]]


class TestOneStep:
    """x0 + guidance against the paper's update, for a model that is an arbitrary function of x."""

    blur_sigma, scale = 1.3, 0.75

    def setup_method(self):
        self.x = random(1, 4, 12, 10)
        self.mask = (random(1, 1, 12, 10, seed=3) > 0.4).double()
        self.weight = random(4, 4, seed=4) / 3

    def network(self, x):
        return torch.einsum("cd,bdhw->bchw", self.weight, torch.tanh(x + 0.3 * x.roll(1, -1)))

    def blend(self, x0):
        return self.mask * reference_blur(x0, self.blur_sigma) + (1 - self.mask) * x0

    def ours(self, denoise, signal, v_coefficient):
        """The update through guidance/self_attention.py, in float32."""
        x, mask = self.x.float(), self.mask.float()
        self.weight = self.weight.float()
        x0 = denoise(x)
        x0_bar = sag.degrade(x0, mask, self.blur_sigma)
        d_bar = denoise(sag.renoise(x, x0, x0_bar, signal))
        return x0 + sag.guidance(x0, x0_bar, d_bar, self.scale, v_coefficient)

    def check(self, expected, denoise, signal, v_coefficient):
        torch.testing.assert_close(
            self.ours(denoise, signal, v_coefficient).double(), expected, rtol=2e-5, atol=2e-5
        )

    @pytest.mark.parametrize("sigma", [0.3, 2.0, 14.6])
    @pytest.mark.parametrize("space", ["eps", "v"])
    def test_variance_preserving(self, sigma, space):
        abar = 1 / (1 + sigma**2)
        a, b = math.sqrt(abar), math.sqrt(1 - abar)
        x = self.x * a  # the paper's x; the host's is x0 + sigma e

        e = self.network(x)
        x0 = (x - b * e) / a
        x_bar = a * self.blend(x0) + b * e
        e_bar = self.network(x_bar)
        if space == "eps":
            expected = (x - b * (e + self.scale * (e - e_bar))) / a
        else:
            v, v_bar = (a * noise - b * (z - b * noise) / a for noise, z in ((e, x), (e_bar, x_bar)))
            expected = a * x - b * (v + self.scale * (v - v_bar))

        self.check(
            expected,
            denoise=lambda z: z - sigma * self.network(z / math.sqrt(1 + sigma**2)),
            signal=1.0,
            v_coefficient=None if space == "eps" else sigma**2 / (1 + sigma**2),
        )

    @pytest.mark.parametrize("sigma", [0.02, 0.5, 80.0])
    @pytest.mark.parametrize("space", ["eps", "v"])
    def test_edm(self, sigma, space):
        data = 0.5
        c_skip = data**2 / (sigma**2 + data**2)
        c_out = sigma * data / math.sqrt(sigma**2 + data**2)
        c_in = 1 / math.sqrt(sigma**2 + data**2)

        def denoise(z):
            return c_skip * z + c_out * self.network(c_in * z)

        x0 = denoise(self.x)
        e = (self.x - x0) / sigma
        x_bar = self.blend(x0) + sigma * e
        if space == "eps":
            e_bar = (x_bar - denoise(x_bar)) / sigma
            expected = self.x - sigma * (e + self.scale * (e - e_bar))
        else:
            f, f_bar = self.network(c_in * self.x), self.network(c_in * x_bar)
            expected = c_skip * self.x + c_out * (f + self.scale * (f - f_bar))

        v_coefficient = None if space == "eps" else sigma**2 / (sigma**2 + data**2)
        self.check(expected, denoise, 1.0, v_coefficient)

    @pytest.mark.parametrize("sigma", [0.05, 0.5, 0.95])
    @pytest.mark.parametrize("space", ["eps", "v"])
    def test_flow(self, sigma, space):
        v = self.network(self.x)  # v = e - x0, x = (1 - sigma) x0 + sigma e
        x0, e = self.x - sigma * v, self.x + (1 - sigma) * v
        x_bar = (1 - sigma) * self.blend(x0) + sigma * e
        v_bar = self.network(x_bar)
        if space == "eps":
            e_bar = x_bar + (1 - sigma) * v_bar
            expected = (self.x - sigma * (e + self.scale * (e - e_bar))) / (1 - sigma)
        else:
            expected = self.x - sigma * (v + self.scale * (v - v_bar))

        self.check(
            expected,
            denoise=lambda z: z - sigma * self.network(z),
            signal=1 - sigma,
            v_coefficient=None if space == "eps" else sigma,
        )


class TestAblationMasks:
    def test_random_keeps_the_tokens(self):
        received = random(3, 6, 5)

        shuffled = sag.shuffle_tokens(received, torch.Generator().manual_seed(1))

        assert not torch.equal(shuffled, received)
        alone = sag.shuffle_tokens(received[1:2], torch.Generator().manual_seed(1))
        assert torch.equal(shuffled[1:2], alone)
        torch.testing.assert_close(shuffled.flatten(1).sort().values, received.flatten(1).sort().values)

    def test_high_frequency_marks_detail_with_the_same_area(self):
        x0 = torch.zeros(2, 4, 16, 16)
        x0[:, :, 4:8, 4:8] = random(2, 4, 4, 4).float()
        mask = torch.zeros(2, 1, 16, 16)
        mask[0, 0, :2] = 1
        mask[1, 0, :1, :9] = 1

        high = sag.high_frequency_mask(x0, mask, 1.0)

        assert high.sum(dim=(1, 2, 3)).tolist() == [32, 9]
        assert high[1, 0, 3:9, 3:9].sum() == 9


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_of_gaussian_data_the_shift_is_a_blur_and_in_v_space_nothing(sigma):
    """D(x) = J x with J = 1 / (1 + sigma^2): the posterior covariance over sigma^2, docs/derivations.md."""
    j = 1 / (1 + sigma**2)
    x = random(1, 2, 8, 8)
    x0_bar = sag.degrade(j * x, torch.ones(1, 1, 8, 8, dtype=torch.float64), 1.0)

    d_bar = j * sag.renoise(x, j * x, x0_bar, 1.0)

    expected = 0.5 * (1 - j) * (x0_bar - j * x)
    assert torch.allclose(sag.guidance(j * x, x0_bar, d_bar, 0.5), expected, atol=1e-12)
    in_v = sag.guidance(j * x, x0_bar, d_bar, 0.5, torch.tensor(1 - j, dtype=x.dtype))
    assert in_v.abs().max() < 1e-12
    assert expected.abs().max() > 1e-4


def test_where_two_images_are_likely_the_shift_is_away_from_the_blur():
    """An edge at one of two places, as likely: D(x) = p A + (1 - p) B, J > 1 along A - B."""
    a, b = torch.zeros(2, 1, 1, 8, 8, dtype=torch.float64)
    a[..., 3:], b[..., 5:] = 1, 1
    sigma = 0.5
    x = (a + b) / 2

    def denoised(x):
        log_odds = ((x - b).square().sum() - (x - a).square().sum()) / (2 * sigma**2)
        p = torch.sigmoid(log_odds)
        return p * a + (1 - p) * b

    x0 = denoised(x)
    x0_bar = x0 + 0.1 * (a - b)  # a blur that moves the edge
    shift = sag.guidance(x0, x0_bar, denoised(sag.renoise(x, x0, x0_bar, 1.0)), 1.0)

    assert (shift * (x0_bar - x0)).sum() < 0
