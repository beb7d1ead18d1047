"""Tiny models of every family of transformers, what a pass of theirs holds, and what is recorded of it."""

import contextlib
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import comfy.ldm.ernie.model
import comfy.ldm.hydit.attn_layers
import comfy.ldm.pixart.blocks
import pytest
import torch

from inner_guidance.nodes.train_depth_head import InnerTrainDepthHead
from inner_guidance.tests.support import recorded_runs as rec
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.node_defaults import execute

TEXT = 7  # tokens of a prompt of tiny_models


@dataclass(frozen=True)
class Family:
    """Where one block of a tiny model is, and what it attends to.

    module, output: the block, and which of its outputs has the image, beginning at `first`. call: the number
    of its attention in a pass. start: where the image begins in it. prompt: (call, where the prompt begins).
    values: what a prompt holds beyond tiny_models' own.
    """

    model_type: str
    name: str
    module: str
    call: int
    start: int
    prompt: tuple[int, int] | None
    output: int | None = None
    first: int = 0
    shape: tuple[int, ...] = (16, 16, 12)
    grid: tuple[int, ...] = (8, 6)
    values: dict = field(default_factory=dict)


VIDEO = {"shape": (16, 1, 16, 12), "grid": (1, 8, 6)}
UNPATCHED = {"shape": (16, 8, 6)}
PIXELS = {"shape": (3, 32, 24)}
LLAMA = torch.randn(1, 2, 5, 16, generator=torch.Generator().manual_seed(5))
NO_PADDING = {"attention_mask": torch.ones(1, TEXT, dtype=torch.long)}
HYDIT = {
    "attention_mask": torch.ones(1, TEXT, dtype=torch.long),
    "conditioning_mt5xl": torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(6)),
    "attention_mask_mt5xl": torch.ones(1, 5, dtype=torch.long),
}
FAMILIES = {
    "flux2": Family("FLUX", "b1", "double_blocks.1", 1, 512, (1, 0), output=0, **UNPATCHED),
    "flux2 single": Family("FLUX", "b3", "single_blocks.1", 3, 512, (3, 0), first=512, **UNPATCHED),
    "krea2": Family("FLUX", "b1", "blocks.1", 5, TEXT, (5, 0), first=TEXT, **VIDEO),
    "radiance": Family("FLUX", "b1", "double_blocks.1", 1, TEXT, (1, 0), output=0, **PIXELS),
    "cosmos": Family("FLOW_COSMOS", "b1", "blocks.1", 2, 0, (3, 0), **VIDEO),
    "wan": Family("FLOW", "b1", "blocks.1", 2, 0, (3, 0), **VIDEO),
    "wan video": Family("FLOW", "b1", "blocks.1", 2, 0, (3, 0), shape=(16, 3, 8, 6), grid=(3, 4, 3)),
    "hidream": Family(
        "FLOW", "b1", "double_stream_blocks.1", 1, 0, (1, 48), output=0, values={"conditioning_llama3": LLAMA}
    ),
    "hidream single": Family(
        "FLOW", "b2", "single_stream_blocks.0", 2, 0, (2, 48), values={"conditioning_llama3": LLAMA}
    ),
    "hunyuan": Family("FLOW", "b1", "double_blocks.1", 3, TEXT, (3, 0), output=0),
    "hunyuan single": Family("FLOW", "b3", "single_blocks.1", 5, TEXT, (5, 0), first=TEXT),
    "hunyuan15": Family(
        "FLOW",
        "b1",
        "double_blocks.1",
        3,
        4 + TEXT,
        (3, 4),
        output=0,
        shape=(16, 3, 8, 6),
        grid=(3, 4, 3),
        values={
            "clip_vision_output": SimpleNamespace(
                last_hidden_state=torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(7))
            )
        },
    ),
    "ideogram": Family("FLOW", "b1", "layers.1", 1, TEXT, (1, 0), first=TEXT, **UNPATCHED),
    "ernie": Family("FLOW", "b1", "layers.1", 1, 0, (1, 48), **UNPATCHED),
    "pixart": Family("EPS", "b1", "blocks.1", 2, 0, (3, 0), shape=(4, 40, 28), grid=(20, 14)),
    "hydit": Family("V_PREDICTION", "b3", "blocks.3", 6, 0, None, shape=(4, 16, 12), values=HYDIT),
    "aura": Family("FLOW", "b1", "double_layers.1", 1, 15, (1, 8), output=1),
    "aura single": Family("FLOW", "b2", "single_layers.0", 2, 15, (2, 8), first=15),
    "kandinsky": Family("FLOW", "b1", "visual_transformer_blocks.1", 3, 0, (4, 0)),
    "omnigen2": Family("FLOW", "b1", "layers.1", 3, TEXT, (3, 0), first=TEXT, values=NO_PADDING),
    "boogu": Family("FLOW", "b1", "double_stream_layers.1", 4, TEXT, (4, 0), output=0, values=NO_PADDING),
    "boogu single": Family(
        "FLOW", "b2", "single_stream_layers.0", 6, TEXT, (6, 0), first=TEXT, values=NO_PADDING
    ),
    "lens": Family("FLUX", "b1", "transformer_blocks.1", 1, 0, (1, 48), output=1, **UNPATCHED),
    "joyimage": Family("FLOW", "b1", "double_blocks.1", 1, 0, (1, 48), output=0, **VIDEO),
    "mage": Family("FLOW", "b1", "transformer_blocks.1", 1, TEXT, (1, 0), output=1, **UNPATCHED),
    "pixeldit": Family("FLOW", "b1", "patch_blocks.1", 1, TEXT, (1, 0), output=0, **PIXELS),
}


def patcher(name):
    return tiny.patcher(name.split()[0], FAMILIES[name].model_type)


def sample(model, family, **values):
    prompts = {
        branch: tiny.prompt(seed, **family.values, **values)
        for branch, seed in (("positive", 0), ("negative", 1))
    }
    return tiny.sample(model, torch.zeros(1, *family.shape), steps=1, **prompts)


def heads_after_tokens(t):
    """(heads, tokens, d) to (tokens, heads * d)."""
    return t.transpose(0, 1).flatten(1)


# Their attention is seen by no override: the name is replaced for the spy.
NOT_OVERRIDABLE = {
    "ernie": comfy.ldm.ernie.model,
    "pixart": comfy.ldm.pixart.blocks,
    "hydit": comfy.ldm.hydit.attn_layers,
}


@contextlib.contextmanager
def all_attention(name, model):
    """recorded_runs.all_attention, also of the families that no override sees."""
    with rec.all_attention(model) as calls:
        if name not in NOT_OVERRIDABLE:
            yield calls
            return
        override = model.model_options["transformer_options"].pop("optimized_attention_override")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                NOT_OVERRIDABLE[name],
                "optimized_attention",
                partial(override, NOT_OVERRIDABLE[name].optimized_attention),
            )
            yield calls


def record(name, model=None, **values):
    """Attention and features at one step, the block's outputs, all attention calls, and the samples."""
    family = FAMILIES[name]
    watched, attention = rec.record_attention(model or patcher(name), blocks=family.name)
    watched, features = rec.record_features(watched, blocks=family.name)
    outputs = []

    def keep(module, args, out):  # blocks of Flux change their input in place
        outputs.append((out if family.output is None else out[family.output]).clone())

    block = watched.get_model_object("diffusion_model").get_submodule(family.module)
    hook = block.register_forward_hook(keep)
    with all_attention(name, watched) as calls:
        samples = sample(watched, family, **values)
    hook.remove()
    calls = [(q, k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)) for q, k in calls]
    (attention_step,), (feature_step,) = rec.steps_of(attention), rec.steps_of(features)
    return attention_step, feature_step, outputs, calls, samples


def assert_received(step, family, call, start):
    """The softmax of one block's q and k among the image's tokens, for both prompts."""
    image = slice(start, start + torch.Size(family.grid).numel())
    for row, branch in enumerate(["negative", "positive"]):
        q, k = (heads_after_tokens(t[row])[image] for t in call)
        rec.assert_close(step.received[branch, family.name], rec.received(q, k, len(call[0][0]), family.grid))


def assert_features(step, family, output, first):
    """The image's tokens of the positive prompt, in the order of the grid."""
    tokens = output[1].flatten(0, -2)[first:][: torch.Size(family.grid).numel()]
    features = step.features["positive", family.name][0].float()
    torch.testing.assert_close(features, tokens.T.unflatten(1, family.grid), rtol=2e-3, atol=2e-3)


class RandomVAE:
    """Random latents of a family's shape: what a VAE is to the nodes."""

    def __init__(self, family):
        self.shape = family.shape

    def vae_encode_crop_pixels(self, pixels):
        return pixels

    def encode(self, pixels):
        return tiny.noise(len(pixels), *self.shape, seed=int(pixels.sum()))


def depth_head(name, **values):
    """A head on the family's block, trained for a step on random latents."""
    family = FAMILIES[name]
    images = torch.rand(3, 32, 24, 3, generator=torch.Generator().manual_seed(0))
    head, _ = execute(
        InnerTrainDepthHead,
        model=patcher(name),
        vae=RandomVAE(family),
        images=images,
        depths=images,
        steps=1,
        batch_size=1,
        positive=tiny.prompt(0, **family.values | values),
        blocks=f"b0,{family.name}",
        weak_blocks="b0",
    )
    return head
