"""Self-Attention Guidance once more, written from the paper in float64, for one forward pass of a test."""

import contextlib
import math

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from inner_guidance.nodes.self_attention_guidance import InnerSelfAttentionGuidance
from inner_guidance.tests.support.node_defaults import defaults
from inner_guidance.tests.support.tiny_models import looks_on

# What a test that does not set them guides with.
SCALE, THRESHOLD = (defaults(InnerSelfAttentionGuidance)[name] for name in ("scale", "threshold"))


@contextlib.contextmanager
def spy_on_attention(*attentions):
    """The queries and keys that these attention modules project, one (q, k) a call, in float64."""
    calls = [[] for _ in attentions]
    hooks = []
    for attention, seen in zip(attentions, calls, strict=True):
        projected_q = looks_on(lambda _m, _i, q, seen=seen: seen.append([q.double()]))
        projected_k = looks_on(lambda _m, _i, k, seen=seen: seen[-1].append(k.double()))
        hooks.append(attention.to_q.register_forward_hook(projected_q))
        hooks.append(attention.to_k.register_forward_hook(projected_k))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def received(q, k, heads):
    """Column sums of the head-averaged softmax attention of one image: q, k (N, heads * d) -> (N,)."""
    q, k = (t.numpy().reshape(t.shape[0], heads, -1).transpose(1, 0, 2) for t in (q, k))
    logits = np.einsum("hid,hjd->hij", q, k) / math.sqrt(q.shape[-1])
    a = np.exp(logits - logits.max(-1, keepdims=True))
    a /= a.sum(-1, keepdims=True)
    return torch.from_numpy(a.mean(0).sum(0))


def nearest(token_map, height, width):
    """A map (h, w) on a grid (height, width)."""
    rows = [i * token_map.shape[0] // height for i in range(height)]
    columns = [j * token_map.shape[1] // width for j in range(width)]
    return token_map[rows][:, columns]


def blur(x0, sigma):
    """Gaussian, reflect padding, kernel of 3 sigma to either side but no longer than the side."""
    blurred = x0.double().numpy()
    for axis in (-2, -1):
        n = blurred.shape[axis]
        radius = min(math.ceil(3 * sigma), n - 1)
        if radius:
            blurred = gaussian_filter1d(blurred, sigma, axis=axis, mode="mirror", radius=radius)
    return torch.from_numpy(blurred)


def degraded(x0, mask, sigma):
    """x0_bar."""
    return torch.where(mask, blur(x0, sigma), x0.double())


def guidance_between(x, x0, extra):
    """The guidance that an extra pass means, scale (x0_bar - D(x_bar)), for one image in eps space.

    Of a pass with both prompts, the first row counts: the host puts the negative there.
    """
    x0_bar = extra.x[:1].double() - x.double() + x0.double()
    return SCALE * (x0_bar - extra.out[:1].double())


def guidance_of(seen):
    """The same of the first step, for the negative."""
    sampler = seen.passes[0]
    return guidance_between(sampler.x[:1], sampler.out[:1], seen.extra[0])
