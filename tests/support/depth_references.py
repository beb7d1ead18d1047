"""Random maps, two smooth heads and derivatives by finite differences, in float64."""

import torch


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def depth(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def finite_differences(f, x, step=1e-6):
    """df/dx of a scalar function, one element after the other."""
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        ends = []
        for sign in (1, -1):
            moved = x.clone()
            moved.view(-1)[i] += sign * step
            ends.append(float(f(moved)))
        gradient.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def heads(x):
    """A strong and a weak depth map that are smooth functions of x (B, 2, h, w)."""
    strong = (x[:, :1] * 0.7 - x[:, 1:].roll(1, -1) * 0.4 + 0.1).sigmoid()
    weak = (x.mean(1, keepdim=True).sin() + 0.3 * x[:, :1].roll(1, -2)).sigmoid()
    return strong, weak


def curved(d):
    """A stand-in for eps_phi."""
    return (2 * d).sin() + 0.3 * d.roll(1, -1)
