"""Pull and shifts of guidance/depth_aware.py against references from the paper, and finite differences."""

import itertools

import numpy as np
import pytest
import torch

from inner_guidance.guidance import depth_aware as dag
from inner_guidance.guidance.hinge import Level
from inner_guidance.tests.support.depth_references import curved, depth, finite_differences, heads, random


class TestPull:
    losses = (
        dag.Term(40.0, dag.consistency_loss),
        dag.Term(3.0, lambda s, w: dag.prior_loss(s, random(2, 1, 3, 4, seed=2), 0.6, curved)),
    )

    def test_one_product_through_the_heads_is_the_gradient_of_the_sum_of_losses(self):
        x = random(2, 2, 3, 4)
        fixed = heads(x)[0]

        def total(x):
            strong, weak = heads(x)
            return (40 * dag.consistency_loss(fixed, weak) + 3 * self.losses[1].loss(strong, weak)).sum()

        leaf = x.clone().requires_grad_()
        maps = heads(leaf)
        asked = dag.pull(*maps, self.losses, normalise=False)
        (gradient,) = torch.autograd.grad(maps, leaf, [asked.strong, asked.weak])

        torch.testing.assert_close(gradient, finite_differences(total, x), rtol=1e-6, atol=1e-8)

    def test_normalised_strengths_mean_the_same_for_every_loss_and_image(self):
        strong, weak = heads(random(2, 2, 3, 4) * torch.tensor([0.01, 1.0]).view(2, 1, 1, 1).double())
        terms = [term._replace(strength=2.0) for term in self.losses]
        alone = [dag.pull(strong, weak, [term], normalise=True) for term in terms]

        for asked in alone:
            torch.testing.assert_close(asked.size, torch.full((2, 1, 1, 1), 2.0).double())
        assert alone[0].strong.abs().max() == 0
        assert alone[1].weak.abs().max() == 0
        together = dag.pull(strong, weak, terms, normalise=True)
        torch.testing.assert_close(together.weak, alone[0].weak)
        torch.testing.assert_close(together.strong, alone[1].strong)

    def test_opposed_losses_cancel_and_satisfied_ones_ask_for_nothing(self):
        d = depth(1, 1, 3, 4)
        losses = [
            dag.Term(1.0, lambda s, w: s.mean((1, 2, 3))),
            dag.Term(1.0, lambda s, w: -s.mean((1, 2, 3))),
        ]

        assert dag.pull(d, None, losses, normalise=True).size == 0
        assert dag.pull(d, d, [dag.Term(1.0, dag.consistency_loss)], normalise=True).size == 0

    def test_cotangents_have_the_size_that_keeps_half_precision_in_range(self):
        x = random(2, 2, 3, 4) * torch.tensor([1e-6, 1.0]).view(2, 1, 1, 1).double()
        asked = dag.pull(*heads(x), self.losses, normalise=False)

        strong, weak = asked.cotangents(256.0)

        torch.testing.assert_close(dag.rms(strong + weak), torch.full((2, 1, 1, 1), 256.0).double())
        torch.testing.assert_close(strong * asked.size / 256, asked.strong)
        satisfied = dag.Term(1.0, lambda s, w: 0 * s.mean((1, 2, 3)))
        nothing = dag.pull(x[:, :1], None, [satisfied], normalise=False)
        assert [c.abs().max() for c in nothing.cotangents(256.0)] == [0]

    def test_without_a_weak_map_there_is_none_to_pull_at(self):
        terms = [dag.Term(1.0, lambda s, w: s.mean((1, 2, 3)))]

        assert dag.pull(depth(1, 1, 3, 4), None, terms, normalise=True).weak is None

    def test_a_level_takes_the_slope_of_the_hinge_of_each_image_and_normalising_does_not_undo_it(self):
        # Losses of four images: 0, 1, 3 and 9. Real images have 2, with a deviation of 2.
        d = torch.tensor([0.0, 1.0, 3.0, 9.0]).double().sqrt().view(4, 1, 1, 1).expand(4, 1, 3, 4)
        level = Level(*torch.full((2, 4), 2.0).double())
        loss = lambda s, w: s.square().mean((1, 2, 3))  # noqa: E731

        calibrated = dag.pull(d, None, [dag.Term(0.7, loss, level)], normalise=True)
        plain = dag.pull(d, None, [dag.Term(0.7, loss)], normalise=True)

        slopes = torch.tensor([0.0, 0.0, 0.5, 1.0]).double().view(4, 1, 1, 1)
        torch.testing.assert_close(calibrated.size, 0.7 * slopes)
        torch.testing.assert_close(calibrated.strong, slopes * plain.strong)
        assert [float(c.abs().max()) for c in calibrated.cotangents(1.0)[0]] == pytest.approx([0, 0, 1, 1])
        alone = dag.pull(d[2:3], None, [dag.Term(0.7, loss, Level(*torch.full((2, 1), 2.0).double()))], True)
        assert torch.equal(alone.strong, calibrated.strong[2:3])

    def test_a_level_holds_for_its_own_term_alone(self):
        strong, weak = heads(random(2, 2, 3, 4))
        far_above = Level(*torch.tensor([[1e3, 1e3], [1.0, 1.0]]).double())

        together = dag.pull(
            strong, weak, [self.losses[0]._replace(level=far_above), self.losses[1]], normalise=True
        )
        alone = dag.pull(strong, weak, [self.losses[1]], normalise=True)

        assert torch.equal(together.strong, alone.strong)
        assert together.weak.abs().max() == 0


class TestShifts:
    def test_a_direction_has_the_size_that_is_asked_for_in_each_image(self):
        gradient = random(3, 4, 5, 6) * torch.tensor([1e-12, 1.0, 1e6]).view(3, 1, 1, 1)
        gradient[1] = 0
        size = torch.tensor([0.5, 1.0, 2.0]).double().view(3, 1, 1, 1)

        found = dag.direction(gradient, size)

        torch.testing.assert_close(dag.rms(found), torch.tensor([0.5, 0.0, 2.0]).double().view(3, 1, 1, 1))
        torch.testing.assert_close(found[2], gradient[2] * (2 / dag.rms(gradient)[2]))

    def test_robust_is_a_step_of_so_many_posterior_deviations_down(self):
        x0, toward, share = random(2, 4, 5, 6) * 3, random(2, 4, 5, 6, seed=1), torch.tensor(0.6).double()
        expected = [
            -0.2 * 0.6 * np.std(x.numpy(), ddof=1) * t.numpy() for x, t in zip(x0, toward, strict=True)
        ]

        np.testing.assert_allclose(
            dag.robust_shift(x0=x0, toward=toward, noise_share=share, strength=0.2), np.stack(expected)
        )

    def test_robust_is_the_preconditioned_gradient_for_gaussian_data(self):
        # x0 ~ N(0, s^2): D(x) = s^2 / (s^2 + sigma^2) x. sigma^2 dD/dx is the posterior variance.
        s, sigma = 1.7, 0.8
        x = random(1, 1, 4, 4).requires_grad_()
        x0 = s**2 / (s**2 + sigma**2) * x
        wanted = random(1, 1, 4, 4, seed=1)
        (g,) = torch.autograd.grad((wanted * x0).sum(), x)

        posterior_variance = s**2 * sigma**2 / (s**2 + sigma**2)
        torch.testing.assert_close(sigma**2 * g, posterior_variance * wanted)
        noise_share = sigma / (sigma**2 + s**2) ** 0.5
        torch.testing.assert_close(torch.tensor(posterior_variance**0.5), torch.tensor(s * noise_share))

    @pytest.mark.parametrize(("sigma", "sigma_next"), [(14.0, 9.0), (1.0, 0.7), (0.3, 0.0)])
    def test_paper_moves_the_mean_of_the_ddpm_posterior(self, sigma, sigma_next):
        x, x0, gradient = random(1, 4, 3, 3), random(1, 4, 3, 3, seed=1), random(1, 4, 3, 3, seed=2)
        abar, abar_next = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
        alpha = abar / abar_next

        def mu(x_t, x0):  # Ho et al. 2020, eq. 7, in the paper's own space
            return (
                abar_next**0.5 * (1 - alpha) / (1 - abar) * x0
                + alpha**0.5 * (1 - abar_next) / (1 - abar) * x_t
            )

        paper_x = abar**0.5 * x
        paper_gradient = gradient / abar**0.5  # x = x_t / sqrt(abar)

        shifted = mu(paper_x, x0 + dag.paper_shift(gradient, sigma, sigma_next))

        torch.testing.assert_close(shifted, mu(paper_x, x0) - paper_gradient)

    def test_paper_moves_the_mean_of_the_ancestral_flow_step(self):
        x, x0, gradient = random(1, 4, 3, 3), random(1, 4, 3, 3, seed=1), random(1, 4, 3, 3, seed=2)
        sigma, sigma_next = 0.8, 0.6
        down = sigma_next**2 / sigma

        def mean(x0):
            return (down / sigma * x + (1 - down / sigma) * x0) * (1 - sigma_next) / (1 - down)

        shifted = mean(x0 + dag.paper_shift(gradient, sigma, sigma_next, flow=True))

        torch.testing.assert_close(shifted, mean(x0) - gradient)

    def test_paper_moves_nothing_where_the_next_latent_of_a_flow_model_is_noise_alone(self):
        for sigma, sigma_next in ((1.2, 1.0), (1.3, 1.1)):
            assert not dag.paper_shift(random(1, 4, 3, 3), sigma, sigma_next, flow=True).any()

    @pytest.mark.parametrize("sigma_next", [0.4, 0.5, 0.75])
    def test_paper_moves_eulers_step_of_a_flow_model_whose_noise_rises(self, sigma_next):
        x, x0, gradient = random(1, 4, 3, 3), random(1, 4, 3, 3, seed=1), random(1, 4, 3, 3, seed=2)

        def euler(x0):
            return x0 + sigma_next / 0.25 * (x - x0)

        shifted = euler(x0 + dag.paper_shift(gradient, 0.25, sigma_next, flow=True))

        torch.testing.assert_close(shifted, euler(x0) - gradient)

    def test_a_shift_of_x0_has_a_limit_in_the_number_of_steps_and_a_kick_has_none(self):
        # The claim of robust_shift, for x0 ~ N(0, 1) and L = x0: where x ends when every estimate is shifted.
        def end(steps, shift):
            sigmas = np.geomspace(10, 1e-3, steps + 1)
            x = 0.0
            for sigma, following in itertools.pairwise(sigmas):
                x0 = x / (1 + sigma**2) + shift(sigma, following)
                x = x0 + (following / sigma) * (x - x0)
            return x

        ones = torch.ones(1, 1, 2, 2).double()

        def robust(sigma, _):
            share = torch.tensor(sigma / (1 + sigma**2) ** 0.5)
            std_1 = ones * torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]) * (3 / 4) ** 0.5
            return float(dag.robust_shift(-ones, std_1, share).mean())

        def paper(sigma, following):
            return float(dag.paper_shift(-ones, sigma, following).mean())

        assert end(100, robust) == pytest.approx(end(50, robust), rel=0.05)
        assert end(100, robust) == pytest.approx(end(1000, robust), rel=0.05)
        assert end(100, paper) > 1.6 * end(50, paper)
