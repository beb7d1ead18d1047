"""The losses of guidance/depth_aware.py against references written from the paper, and finite differences."""

import numpy as np
import pytest
import torch

from inner_guidance.guidance import depth_aware as dag
from inner_guidance.tests.support.depth_references import curved, depth, finite_differences, heads, random
from inner_guidance.tests.support.reference_blur import reference_blur


class TestLosses:
    def test_consistency_is_the_mean_squared_difference_of_each_image(self):
        strong, weak = depth(3, 1, 4, 5), depth(3, 1, 4, 5, seed=1)
        expected = [np.mean((s - w) ** 2) for s, w in zip(strong.numpy(), weak.numpy(), strict=True)]

        torch.testing.assert_close(dag.consistency_loss(strong, weak), torch.tensor(expected))

    def test_consistency_stops_the_gradient_at_the_strong_branch(self):
        x = random(2, 2, 3, 4)
        fixed = heads(x)[0]
        expected = finite_differences(lambda x: ((fixed - heads(x)[1]) ** 2).mean((1, 2, 3)).sum(), x)

        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(dag.consistency_loss(*heads(leaf)).sum(), leaf)

        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize("abar", [0.98, 0.5, 0.05])
    def test_prior_is_the_error_of_the_predicted_noise_and_differentiates_the_prior(self, abar):
        x, eta = random(2, 2, 3, 4), random(2, 1, 3, 4, seed=2)

        def reference(x):
            noised = np.sqrt(abar) * heads(x)[0].numpy() + np.sqrt(1 - abar) * eta.numpy()
            error = eta.numpy() - curved(torch.from_numpy(noised)).numpy()
            return (error**2).mean((1, 2, 3))

        leaf = x.clone().requires_grad_()
        loss = dag.prior_loss(heads(leaf)[0], eta, abar, curved)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)

        torch.testing.assert_close(loss.detach(), torch.from_numpy(reference(x)))
        expected = finite_differences(lambda x: reference(x).sum(), x)
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize("abar", [0.98, 0.5])
    def test_denoised_prior_is_the_distance_to_the_map_without_its_noise(self, abar):
        d, etas = random(2, 1, 3, 4), random(3, 2, 1, 3, 4, seed=2)
        label = np.zeros(d.shape)
        for eta in etas:
            noised = np.sqrt(abar) * d.numpy() + np.sqrt(1 - abar) * eta.numpy()
            predicted = curved(torch.from_numpy(noised)).numpy()
            label += (noised - np.sqrt(1 - abar) * predicted) / np.sqrt(abar) / 3

        leaf = d.clone().requires_grad_()
        loss = dag.denoised_prior_loss(leaf, etas, abar, curved)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)

        difference = d - torch.from_numpy(label)
        torch.testing.assert_close(loss.detach(), difference.square().mean((1, 2, 3)))
        torch.testing.assert_close(gradient, 2 * difference / 12)

    @pytest.mark.parametrize("abar", [0.98, 0.5, 0.05])
    def test_denoised_prior_of_a_gaussian_pulls_straight_to_its_mean(self, abar):
        mean, variance, d, eta = (
            random(2, 1, 3, 4, seed=3),
            0.3,
            random(2, 1, 3, 4),
            random(2, 1, 3, 4, seed=2),
        )

        def eps_phi(noised):
            # -sqrt(1 - abar) times the score of N(sqrt(abar) mean, abar variance + 1 - abar).
            means = mean.repeat(len(noised) // 2, 1, 1, 1)
            return (1 - abar) ** 0.5 * (noised - abar**0.5 * means) / (abar * variance + 1 - abar)

        leaf = d.clone().requires_grad_()
        loss = dag.denoised_prior_loss(leaf, torch.stack([eta, -eta]), abar, eps_phi)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)

        share = (1 - abar) / (abar * variance + 1 - abar)
        torch.testing.assert_close(gradient, 2 * share * (d - mean) / 12)

    @pytest.mark.parametrize("masked", [False, True])
    def test_target_is_aligned_by_least_squares(self, masked):
        target = depth(2, 1, 6, 7)
        d = 1.3 * target - 0.2 + 0.05 * random(2, 1, 6, 7, seed=3)
        mask = (depth(2, 1, 6, 7, seed=4) > 0.4).double() if masked else None

        aligned = dag.fit_target(target, d, mask)

        for i in range(2):
            inside = mask[i].bool().numpy() if masked else np.ones((1, 6, 7), bool)
            t, y = target[i].numpy(), d[i].numpy()
            columns = np.stack([t[inside], np.ones(inside.sum())], axis=1)
            (a, b), *_ = np.linalg.lstsq(columns, y[inside], rcond=None)
            np.testing.assert_allclose(aligned[i].numpy(), a * t + b)
            expected = ((y - a * t - b)[inside] ** 2).mean() / y[inside].var()
            np.testing.assert_allclose(dag.target_loss(d, target, mask)[i], expected)

    @pytest.mark.parametrize("masked", [False, True])
    def test_a_blurred_target_is_compared_with_the_blurred_depth(self, masked):
        target, d = depth(2, 1, 6, 7), depth(2, 1, 6, 7, seed=3)
        mask = depth(2, 1, 6, 7, seed=4) if masked else None
        share = mask.numpy() if masked else np.ones((2, 1, 6, 7))
        inside = reference_blur(torch.from_numpy(share), 1.4).numpy()

        def reference(d):
            y, t = (
                reference_blur(torch.from_numpy(share * m.numpy()), 1.4).numpy() / inside for m in (d, target)
            )
            found = 0.0
            for i in range(2):
                w = share[i] / share[i].sum()
                yc, tc = y[i] - (w * y[i]).sum(), t[i] - (w * t[i]).sum()
                a = np.clip((w * yc * tc).sum() / (w * tc**2).sum(), *dag.TARGET_STRETCH)
                found += (w * (yc - a * tc) ** 2).sum() / (w * yc**2).sum()
            return torch.tensor(found)

        leaf = d.clone().requires_grad_()
        loss = dag.target_loss(leaf, target, mask, 1.4).sum()

        torch.testing.assert_close(loss.detach(), reference(d))
        close = 0.9 * target + 0.1 * d  # the gradient counts the fit as constant, which it is at an optimum
        leaf = close.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(dag.target_loss(leaf, target, mask, 1.4).sum(), leaf)
        torch.testing.assert_close(gradient, finite_differences(reference, close), rtol=1e-6, atol=1e-9)

    def test_a_blur_stays_inside_the_mask(self):
        target, d = depth(1, 1, 6, 7), depth(1, 1, 6, 7, seed=3)
        mask = torch.zeros(1, 1, 6, 7, dtype=torch.float64)
        mask[..., :3] = 1
        elsewhere = torch.where(mask == 1, target, 9.0)

        leaf = d.clone().requires_grad_()
        loss = dag.target_loss(leaf, elsewhere, mask, 2.0)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)

        torch.testing.assert_close(loss.detach(), dag.target_loss(d, target, mask, 2.0))
        assert gradient[..., :3].abs().min() > 0
        assert gradient[..., 3:].eq(0).all()

    @pytest.mark.parametrize(("slope", "scale"), [(-1.0, 0.5), (0.0, 0.5), (9.0, 2.0)])
    def test_an_alignment_neither_flattens_nor_inverts_the_target(self, slope, scale):
        target = depth(1, 1, 6, 7)
        aligned = dag.fit_target(target, slope * target + 0.1)

        torch.testing.assert_close(aligned - aligned.mean(), scale * (target - target.mean()))
        torch.testing.assert_close(aligned.mean(), (slope * target + 0.1).mean())

    def test_target_asks_nothing_of_what_fits_and_nothing_outside_the_mask(self):
        target, mask = depth(1, 1, 6, 7), torch.zeros(1, 1, 6, 7, dtype=torch.float64)
        mask[..., :3] = 1
        d = (1.5 * target + 0.2 + (1 - mask)).requires_grad_()

        (gradient,) = torch.autograd.grad(dag.target_loss(d, target, mask).sum(), d)

        torch.testing.assert_close(gradient, torch.zeros_like(d), rtol=0, atol=1e-12)

    def test_the_gradient_of_the_target_loss_is_that_of_its_optimum(self):
        # The optimal a and b are constants in fit_target; at an optimum that is no approximation.
        target, d = depth(1, 1, 3, 4), depth(1, 1, 3, 4, seed=5) * 0.2 + depth(1, 1, 3, 4)
        expected = finite_differences(lambda d: dag.target_loss(d, target).sum(), d)

        leaf = d.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(dag.target_loss(leaf, target).sum(), leaf)

        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)

    def test_the_target_does_not_ask_for_flatter_or_nearer_depth(self):
        target = depth(2, 1, 6, 7)
        d = (0.7 * target + 0.1 * random(2, 1, 6, 7, seed=3)).requires_grad_()

        (gradient,) = torch.autograd.grad(dag.target_loss(d, target).sum(), d)

        for asked, shape in zip(gradient, d.detach(), strict=True):
            assert asked.abs().max() > 1e-3
            torch.testing.assert_close(asked.sum(), torch.tensor(0.0).double(), rtol=0, atol=1e-12)
            torch.testing.assert_close((asked * shape).sum(), torch.tensor(0.0).double(), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_target_that_is_flat_inside_the_mask_asks_nothing(self, dtype):
        """The normalised gradient would be rounding at full strength. The other image is followed."""
        target, d, mask = (depth(2, 1, 6, 7, seed=seed).to(dtype) for seed in range(3))
        mask[:, :, 3:] = 0
        target[0, :, :3] = 0.3
        term = dag.Term(1.0, lambda strong, _: dag.target_loss(strong, target, mask), None)

        asked = dag.pull(d, None, [term], normalise=True)

        assert dag.is_flat(target, mask).tolist() == [True, False]
        assert asked.strong[0].eq(0).all()
        torch.testing.assert_close(asked.size.flatten(), torch.tensor([0.0, 1.0], dtype=dtype))

    @pytest.mark.parametrize(("difference", "flat"), [(0.005, False), (0.001, True)])
    def test_greys_that_differ_by_a_thousandth_are_one(self, difference, flat):
        target = torch.full((1, 1, 4, 4), 0.5)
        target[..., 2:] += difference

        assert dag.is_flat(target).tolist() == [flat]

    @pytest.mark.parametrize("flat", [0.0, 0.7])
    def test_flat_targets_and_empty_masks_stay_finite(self, flat):
        target, d = torch.full((1, 1, 4, 4), flat), torch.rand(1, 1, 4, 4)

        assert dag.target_loss(d, target).isfinite().all()
        assert dag.target_loss(d, d, torch.zeros(1, 1, 4, 4)) == 0
