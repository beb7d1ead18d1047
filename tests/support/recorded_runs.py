"""Tiny models with our Record nodes behind them, what they record, in float64, and records made by hand."""

import contextlib
import math

import numpy as np
import torch
from comfy_execution.utils import CurrentNodeContext

from inner_guidance.host.recording.records import AttentionRecord, AttentionStep, Execution, Run
from inner_guidance.nodes.record import InnerRecordAttention, InnerRecordFeatures
from inner_guidance.tests.support.node_defaults import execute

# Of the records made by hand
WORDS = {"red": 1, "sphere": 2, "white": 4, "wall": 5}  # their places among CLIP's tokens
TOKENS = 77
LATENT = {"samples": torch.zeros(2, 4, 16, 16)}
STEPS = (0, 2)


def record_attention(model, **settings):
    """The model with Record Attention behind it, at the node's defaults except for these; and the record."""
    return execute(InnerRecordAttention, model=model, **settings)


def record_features(model, **settings):
    """The model with Record Features behind it, at the node's defaults except for these; and the record."""
    return execute(InnerRecordFeatures, model=model, **settings)


def steps_of(record):
    """The steps of the only run."""
    (run,) = record.runs
    return run.steps


def executing(node_id, prompt_id="prompt", index=0):
    """As within the host's executor, at this node."""
    return CurrentNodeContext(prompt_id, node_id, index)


def softmax(q, k, heads):
    """The attention of one image, mean over the heads: q (n_q, heads d), k (n_k, heads d) -> (n_q, n_k)."""
    q, k = (t.double().numpy().reshape(t.shape[0], heads, -1).transpose(1, 0, 2) for t in (q, k))
    logits = np.einsum("hid,hjd->hij", q, k) / math.sqrt(q.shape[-1])
    a = np.exp(logits - logits.max(-1, keepdims=True))
    a /= a.sum(-1, keepdims=True)
    return torch.from_numpy(a.mean(0))


def received(q, k, heads, grid):
    """Column sums (1, *grid)."""
    return softmax(q, k, heads).sum(0).view(1, *grid)


def given(q, k, heads, grid):
    """What each token of the image gives to each token of the prompt: (1, tokens, *grid)."""
    return softmax(q, k, heads).T.reshape(1, -1, *grid)


def assert_close(a, b):
    """Equal but for float32 rounding."""
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-6)


def assert_close_in_half(a, b):
    """Equal but for float16 and float32 rounding."""
    torch.testing.assert_close(a.double(), b.double(), rtol=2e-3, atol=1e-6)


@contextlib.contextmanager
def all_attention(model):
    """All attention calls of the model: (q, k), (B, heads, N, d) each."""
    calls = []

    def override(attention, q, k, v, heads, *args, **kwargs):
        pair = [q, k]
        if not kwargs.get("skip_reshape"):
            pair = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in pair]
        calls.append([t.clone() for t in pair])
        return attention(q, k, v, heads, *args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    yield calls


def random_map(seed, grid):
    """Attention received, with a mean of 1."""
    values = torch.rand(2, *grid, generator=torch.Generator().manual_seed(seed)) ** 2
    return (values / values.mean(dim=(1, 2), keepdim=True)).half()


def shares():
    """Attention to the prompt: each word has a row of the grid of its own, by the place of its token."""
    given = torch.full((2, TOKENS, 8, 8), 0.1 / TOKENS)
    for row, place in enumerate(WORDS.values()):
        given[:, place, 2 * row] = 0.5
    return given.half()


def attention_record(*branches):
    """A run of two images: two blocks of these branches, at two steps."""
    steps = [
        AttentionStep(
            number,
            1.0,
            {
                (branch, layer): random_map(number + len(layer) + grid, (grid, grid))
                for branch in branches
                for layer, grid in (("m0.0", 4), ("u1.0", 8))
            },
            {(branch, "u1.0", 0): shares() for branch in branches},
        )
        for number in STEPS
    ]
    return filled(AttentionRecord(), steps)


def filled(record, steps):
    """The record with a run of these steps in it."""
    record.begin(Run(Execution(), (2, 4, 16, 16), (128, 128), steps))
    return record


def shown(node, record, **values):
    """What a map node gives out, at its defaults except for these values."""
    return execute(node, record=record, latent=LATENT, **values)
