"""The width of a feature on every family, and its gradient, where DAG takes one, by central differences."""

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from inner_guidance.host.depth.heads import feature_channels
from inner_guidance.host.gradients.forward import evaluate_with_gradient
from inner_guidance.host.taps.blocks import feature_blocks, parse_blocks
from inner_guidance.host.taps.feature_tap import FeatureTap
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.float64 import in_float64
from inner_guidance.tests.support.model_families import FAMILIES

pytestmark = pytest.mark.slow

STEP = 1e-5
NAMES = ("x", "t", "c_concat", "c_crossattn", "control", "transformer_options")


def weights(like, seed):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def float64():
    with in_float64():
        yield


@pytest.mark.parametrize("name", FAMILIES)
def test_is_the_gradient_of_what_the_host_computes(name, float64):
    family = FAMILIES[name]
    model = tiny.patcher(name.split()[0], family.model_type, weights=torch.float64)
    network = model.model.diffusion_model
    (layer,) = parse_blocks(family.name, feature_blocks(network))
    found = []

    def wrapper(executor, *args, **kwargs):
        x, context = args[0], args[3]

        def energy(at):
            read = []
            with FeatureTap([layer], lambda _, f: read.append(f.clone())).reading(network, at, context):
                executor(at, *args[1:5], dict(args[5]), **kwargs)
            assert read[0].shape[1] == feature_channels(network)[family.name]
            return float((weights(read[0], 1) * read[0]).sum())

        def products(features):
            return [features[layer]], [weights(features[layer], 1)]

        energy(x)
        inputs = dict(zip(NAMES, args, strict=True)) | kwargs
        for checkpointing in (False, True):
            out, (gradient,) = evaluate_with_gradient(
                executor, range(len(x)), [layer], [products], inputs, checkpointing=checkpointing
            )
            found.append(gradient)
        for seed in range(3):
            d = weights(x, 5 + seed)
            slope = (energy(x + STEP * d) - energy(x - STEP * d)) / (2 * STEP)
            found.append((slope, float((gradient * d).sum())))
        return out

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", wrapper)
    positive, negative = (tiny.prompt(i, **family.values) for i in range(2))
    latent = torch.zeros(1, *family.shape)
    tiny.sample(model, latent, steps=1, cfg=1.0, scheduler="simple", positive=positive, negative=negative)

    gradient, checkpointed, *slopes = found[:5]
    assert gradient.dtype == torch.float64
    torch.testing.assert_close(checkpointed, gradient, rtol=1e-6, atol=1e-6 * float(gradient.abs().max()))
    expected, ours = torch.tensor(slopes).T
    assert (ours - expected).norm() < 1e-6 * expected.norm()
