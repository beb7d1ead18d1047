"""Tiny models with our Record nodes behind them, and what was recorded once more, in float64."""

import contextlib
import math

import numpy as np
import torch
from comfy_execution.utils import CurrentNodeContext

from inner_guidance.nodes.record import InnerRecordAttention, InnerRecordFeatures

SCHEDULE = {"start_percent": 0.0, "end_percent": 1.0}


def record_attention(model, **settings):
    """The model with Record Attention behind it, at the node's defaults except for these; and the record."""
    defaults = SCHEDULE | {"blocks": "m0", "max_steps": 50, "prompt": True, "preview": True}
    return InnerRecordAttention.execute(model, **defaults | settings).result


def record_features(model, **settings):
    """The model with Record Features behind it, at the node's defaults except for these; and the record."""
    defaults = SCHEDULE | {"blocks": "m0", "branch": "positive", "max_steps": 10, "preview": True}
    return InnerRecordFeatures.execute(model, **defaults | settings).result


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
