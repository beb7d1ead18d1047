"""The gradient of one forward pass of a tiny model: as ours takes it, and by central differences."""

import comfy.model_base
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from inner_guidance.host.gradients.forward import evaluate_with_gradient
from inner_guidance.host.taps.blocks import feature_blocks, parse_blocks
from inner_guidance.host.taps.feature_tap import FeatureTap
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.tiny_configs import CONTEXT, SD15, SDXL, SMALL

BLOCKS = "o1,o2"
CHUNKS = 2


def build(kind="small", dtype=torch.float64, compute=None, seed=0):
    """A model of its own, so that a test may change its weights."""
    unet_config = {"small": SMALL, "sd15": SD15, "sdxl": SDXL}[kind] | {"dtype": dtype}
    config = tiny.Config(dict(unet_config))
    config.set_inference_dtype(dtype, compute)
    model_class = comfy.model_base.SDXL if kind == "sdxl" else comfy.model_base.BaseModel
    model = model_class(config, tiny.ModelType.EPS, device=tiny.CPU)
    tiny.initialise(model, seed)
    return model


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pass_inputs(model, batch=2, dtype=torch.float64, control=False):
    """What an APPLY_MODEL wrapper gets: the negative's chunk, then the positive's."""
    rows = CHUNKS * batch
    inputs = {
        "x": random(rows, 4, 8, 12, dtype=dtype) * 2,
        "t": torch.full((rows,), 1.5, dtype=dtype),
        "c_concat": None,
        "c_crossattn": random(rows, 7, CONTEXT, seed=1, dtype=dtype),
        "control": None,
        "transformer_options": {"cond_or_uncond": [1, 0], "uuids": ["n", "p"]},
    }
    if control:
        shapes = ((rows, 32, 8, 12), (rows, 64, 4, 6))
        inputs["control"] = {
            "middle": [random(*shapes[1], seed=2, dtype=dtype)],
            "output": [
                random(*shapes[0], seed=3, dtype=dtype),
                None,
                random(*shapes[1], seed=4, dtype=dtype),
            ],
        }
    if model.diffusion_model.num_classes is not None:
        inputs["y"] = random(rows, model.diffusion_model.label_emb[0][0].in_features, seed=5, dtype=dtype)
    return inputs


def apply_model(model, inputs, wrapper):
    """The model's answer with an APPLY_MODEL wrapper of ours; `inputs` may be used again."""
    inputs = dict(inputs)
    options = dict(inputs.pop("transformer_options"))
    options["wrappers"] = {WrappersMP.APPLY_MODEL: {"test": [wrapper], **options.get("other_wrappers", {})}}
    copied = {
        name: {key: list(value) for key, value in inputs["control"].items()}
        for name in ("control",)
        if inputs["control"]
    }
    return model.apply_model(transformer_options=options, **inputs | copied)


def layers_of(model, blocks=BLOCKS):
    return parse_blocks(blocks, feature_blocks(model.diffusion_model))


def cotangents_of(features):
    return [random(*f.shape, seed=10 + i, dtype=f.dtype) for i, f in enumerate(features)]


def with_gradient(model, inputs, rows, blocks=BLOCKS, **kwargs):
    """The output, and the gradient of sum_i c_i f_i for fixed random c_i."""
    layers = layers_of(model, blocks)
    found = []

    def products(features):
        outputs = [features[layer] for layer in layers if layer not in kwargs.get("constant", ())]
        return outputs, cotangents_of(outputs)

    def wrapper(executor, *args, **extra):
        named = dict(
            zip(("x", "t", "c_concat", "c_crossattn", "control", "transformer_options"), args, strict=True)
        )
        out, (gradient,) = evaluate_with_gradient(executor, rows, layers, [products], named | extra, **kwargs)
        found.append(gradient)
        return out

    return apply_model(model, inputs, wrapper), found[0]


def plain(model, inputs):
    return apply_model(model, inputs, lambda executor, *args, **extra: executor(*args, **extra))


def energy(model, inputs, rows, blocks=BLOCKS):
    """sum_i c_i f_i of the host's plain pass of the whole batch, over these rows."""
    layers, features = layers_of(model, blocks), {}

    def wrapper(executor, x, t, c_concat, c_crossattn, *args, **extra):
        tap = FeatureTap(layers, lambda layer, f: features.update({layer: f.clone()}))
        with tap.reading(model.diffusion_model, x, c_crossattn):
            return executor(x, t, c_concat, c_crossattn, *args, **extra)

    apply_model(model, inputs, wrapper)
    of_rows = [features[layer][list(rows)] for layer in layers]
    return float(sum((c * f).sum() for c, f in zip(cotangents_of(of_rows), of_rows, strict=True)))


def assert_is_the_gradient(
    model, inputs, rows, gradient, step=1e-7, directions=4, together=False, blocks=BLOCKS
):
    """Central differences along random directions of the rows' latents; of all chunks' latents together."""
    for seed in range(directions):
        of_rows = random(*gradient.shape, seed=20 + seed)
        direction = torch.zeros_like(inputs["x"])
        if together:
            direction += of_rows.repeat(CHUNKS, *[1] * (of_rows.ndim - 1))
        else:
            direction[list(rows)] = of_rows
        ends = [
            energy(model, inputs | {"x": inputs["x"] + sign * step * direction}, rows, blocks)
            for sign in (1, -1)
        ]
        expected = (ends[0] - ends[1]) / (2 * step)
        assert float((gradient * of_rows).sum()) == pytest.approx(expected, rel=1e-5)
