"""experiments/set_figures.py and square_mask.py, against the definitions written out."""

import pytest
import torch

from inner_guidance.experiments.set_figures import (
    NEIGHBOURS,
    detail,
    diversity_of,
    effective_scale,
    frechet_to,
    inside_manifold,
    nearest,
)
from inner_guidance.experiments.square_mask import centre_tokens


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_frechet_terms():
    x, y = normal(50, 4) @ normal(4, 4, seed=1) + 1, normal(60, 4, seed=2)

    means, covariances = frechet_to(y)(x)

    c_x, c_y = x.double().T.cov(), y.double().T.cov()
    root = torch.linalg.eigvals(c_x @ c_y).sqrt().real.sum()
    assert means == pytest.approx((x.mean(0) - y.mean(0)).square().sum().item(), rel=1e-5)
    assert covariances == pytest.approx((c_x.trace() + c_y.trace() - 2 * root).item(), rel=1e-5)


def test_a_manifold_is_the_balls_to_the_kth_neighbour():
    x, y = 1.5 * normal(40, 2), normal(30, 2, seed=1)

    found = inside_manifold(x, y)

    for i in range(len(x)):
        inside = False
        for j in range(len(y)):
            others = sorted((y[j] - y[k]).norm().item() for k in range(len(y)) if k != j)
            inside |= (x[i] - y[j]).norm().item() <= others[NEIGHBOURS - 1]
        assert found[i] == inside
    assert 0 < found.float().mean() < 1


def test_nearest():
    x, y = torch.tensor([[0.0, 0.0], [5.0, 0.0]]), torch.tensor([[3.0, 4.0], [5.0, 1.0]])

    assert nearest(x, y).tolist() == [5.0, 1.0]


def test_diversity_is_the_mean_over_pairs():
    x = normal(9, 3)
    chosen = torch.tensor([0, 4, 4, 7])

    pairs = [(x[i] - x[j]).norm() for i in range(9) for j in range(9) if i != j]
    assert diversity_of(x)(torch.arange(9)) == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-5)
    drawn = x[chosen]
    assert diversity_of(x)(chosen) == pytest.approx(torch.pdist(drawn).mean().item(), rel=1e-5)


def test_detail_is_in_edges_not_in_slopes():
    slope = torch.arange(16.0).expand(16, 16)[..., None].expand(1, 16, 16, 3).to(torch.uint8)
    edge = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    edge[:, :, 8:] = 255

    assert detail(slope) == pytest.approx(0.0, abs=1e-6)
    assert detail(edge).item() == pytest.approx((2 / 14) ** 0.5, rel=1e-5)  # 1 in two of 14 columns


def test_effective_scale_is_that_of_plain_cfg():
    uncond, direction, other = normal(2, 5, 3), normal(2, 5, 3, seed=1), normal(2, 5, 3, seed=2)
    across = other.flatten(1) - (other * direction).sum((1, 2))[:, None] / direction.square().sum((1, 2))[
        :, None
    ] * direction.flatten(1)
    scales = torch.tensor([3.0, 1.5])

    guided = uncond + scales[:, None, None] * direction + across.view_as(direction)

    assert torch.allclose(effective_scale(guided, uncond + direction, uncond), scales, atol=1e-5)


def test_the_square_has_the_area_of_attention_in_the_middle():
    received = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))

    mask = centre_tokens(received[:, None], torch.Generator())[:, 0] > 0.75

    assert mask.sum((1, 2)).tolist() == (received > 0.75).sum((1, 2)).tolist()
    for one in mask:
        side = int(one.sum().item() ** 0.5) // 2 * 2
        first = (8 - side) // 2
        assert one[first : first + side, first : first + side].all()
        assert not one[0].any()
