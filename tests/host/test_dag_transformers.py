"""Depth heads and Depth-Aware Guidance on transformers: tiny ones of the host's own classes."""

import copy
from types import SimpleNamespace

import comfy.model_base
import comfy.model_management
import pytest
import torch

from inner_guidance.depth_head.architectures.pixel_mlp import embed_time
from inner_guidance.depth_head.head import DepthHead
from inner_guidance.depth_head.head_files import load_depth_head, save_depth_head
from inner_guidance.guidance import depth_aware as dag
from inner_guidance.host.depth.head_training import new_network
from inner_guidance.host.depth.heads import HostedDepthHead, model_family, require_head_fits
from inner_guidance.host.steering.guided_run import CLASSIFIER, require_differentiable
from inner_guidance.host.taps.blocks import feature_blocks
from inner_guidance.host.taps.feature_tap import FeatureTap
from inner_guidance.nodes.depth_estimate import InnerDepthEstimate
from inner_guidance.nodes.train_depth_head import InnerTrainDepthHead
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.node_defaults import execute

# kind: (model type, family in words, the blocks that are read by default)
FAMILIES = {
    "sd3": ("FLOW", "SD3 with 3 blocks of 128 channels", ("b0", "b1")),
    "flux": ("FLUX", "Flux with 5 blocks of 48 channels", ("b1", "b2")),
    "chroma": ("FLUX", "Chroma with 5 blocks of 48 channels", ("b1", "b2")),
    "qwen": ("FLUX", "QwenImage with 3 blocks of 48 channels", ("b0", "b1")),
    "lumina": ("FLOW", "Lumina2 with 3 blocks of 48 channels", ("b0", "b1")),
    "zimage": ("FLOW", "Lumina2 with 3 blocks of 256 channels", ("b0", "b1")),
}
CFG = 4.0


def patcher(kind):
    return tiny.patcher(kind, FAMILIES[kind][0])


def head(kind, blocks="auto"):
    model = patcher(kind)
    network = new_network(model, "pixel_mlp", blocks, "auto", seed=0).requires_grad_(False).eval()
    return HostedDepthHead.of(DepthHead(network, model_family(model), name="head_of_test"))


def latent(kind, batch=1, height=16, width=12):
    return torch.zeros(batch, 16, *(1,) * (kind == "qwen"), height, width)


def sampled(kind, guide=True, settings=None, model=None, batch=1, **kwargs):
    model = model or patcher(kind)
    if guide:
        model = depth.depth_guided(model, depth_head=head(kind), **settings or {})
    return tiny.sample(model, latent(kind, batch), **{"steps": 2, "scheduler": "simple"} | kwargs)


def naive_gradient(model, network, x, sigma):
    """Of the consistency loss of the positive: autograd through one plain call of the host's model."""
    with torch.inference_mode(False):
        base = copy.copy(model.model)
        diffusion_model = copy.deepcopy(base.diffusion_model).requires_grad_(False)
        base._modules = base._modules | {"diffusion_model": diffusion_model}
    ((context, values),) = tiny.prompt(0)
    conds = base.extra_conds(cross_attn=context, noise=x, device=tiny.CPU, **values)
    layers = {feature_blocks(base.diffusion_model)[name][0]: name for name in network.taps}
    with torch.inference_mode(False), torch.enable_grad():
        given = {name: c.process_cond(batch_size=len(x), device=tiny.CPU).cond for name, c in conds.items()}
        given = {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in given.items()}
        leaf, features = x.clone().requires_grad_(), {}
        tap = FeatureTap(list(layers), lambda layer, f: features.update({layers[layer]: f.clone()}))
        with (
            torch.autograd.graph.allow_mutation_on_saved_tensors(),
            tap.reading(base.diffusion_model, leaf, given["c_crossattn"]),
        ):
            base.apply_model(leaf * 1, sigma.clone(), transformer_options={"patches": {}}, **given)
            strong, weak = (
                branch_depth(network, branch, features, sigma, x) for branch in ("strong", "weak")
            )
            return torch.autograd.grad(((strong.detach() - weak) ** 2).mean(), leaf)[0]


def branch_depth(network, branch, features, sigma, x):
    """PixelMLP of tokens with mean 0 and variance 1; time is 1000 sigma."""
    read = []
    for name, standardise in zip(network.taps, network.standardise, strict=True):
        tokens = features[name].flatten(2).transpose(1, 2)
        tokens = tokens - tokens.mean(dim=-1, keepdim=True)
        tokens = tokens / (tokens.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        if name in network.branch_taps[branch]:
            read.append(standardise(tokens.transpose(1, 2).unflatten(2, features[name].shape[-2:])))
    return getattr(network, branch)(read, embed_time(1000 * sigma.clone()), x.shape[-2:])


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_step_is_the_naive_gradient_as_a_shift(kind, monkeypatch):
    network, seen = head(kind).head.network, []
    model = patcher(kind)
    guided = depth.depth_guided(model, depth_head=head(kind))

    def see(args):
        plain = args["uncond_denoised"] + CFG * (args["cond_denoised"] - args["uncond_denoised"])
        seen.append({**args, "shift": args["denoised"] - plain})
        return args["denoised"]

    guided.set_model_sampler_post_cfg_function(see)
    tiny.sample(guided, latent(kind), steps=3, cfg=CFG, scheduler="simple")

    monkeypatch.setattr(comfy.model_management, "in_training", True)
    step = seen[1]
    g = naive_gradient(model, network, step["input"], step["sigma"]).double()
    sigma, deviation = float(step["sigma"]), step["cond_denoised"].double().std()
    share = sigma / (sigma**2 + (1 - sigma) ** 2) ** 0.5
    expected = -dag.ROBUST_STEP * share * deviation * g / g.square().mean().sqrt()
    assert (step["shift"] - expected).norm() < 2e-3 * expected.norm()


@pytest.mark.parametrize("kind", FAMILIES)
def test_distilled_models_without_a_negative(kind):
    image = sampled(kind, cfg=1.0, batch=2)
    plain = sampled(kind, guide=False, cfg=1.0, batch=2)
    checkpointed = sampled(kind, cfg=1.0, batch=2, settings={"checkpointing": True})

    tiny.assert_steered(image, plain)
    torch.testing.assert_close(checkpointed, image, rtol=1e-3, atol=1e-3 * float(image.abs().max()))
    assert comfy.model_management.in_training is False


def test_scale_0_is_the_plain_image():
    off = {"consistency_scale": 0.0}
    assert torch.equal(sampled("flux", settings=off), sampled("flux", guide=False))


def test_paper_mode_with_prior_and_target_and_both_prompts():
    settings = {
        "mode": "paper",
        "depth_prior": depth.prior(),
        "target_depth": depth.target(),
        "consistency_scale": 10.0,
    }
    image = sampled("zimage", settings=settings, sampler="euler_ancestral")
    tiny.assert_steered(image, sampled("zimage", guide=False, sampler="euler_ancestral"))


def test_beside_a_replaced_block_and_self_attention_guidance():
    def louder(args, extra):
        out = extra["original_block"](args)
        return out | {"img": out["img"].mul_(1.1)}

    def model():
        patched = patcher("sd3")
        patched.set_model_patch_replace(louder, "dit", "double_block", 1)
        return tiny.guided(patched)

    tiny.assert_steered(sampled("sd3", model=model()), sampled("sd3", guide=False, model=model()))


def test_a_video_is_refused_before_anything_is_sampled():
    model = depth.depth_guided(patcher("qwen"), depth_head=head("qwen"))
    watched = tiny.watch(model)
    with pytest.raises(ValueError, match=r"guides images, and this latent is a video of 3 frames: use"):
        tiny.sample(model, torch.zeros(1, 16, 3, 8, 8), steps=1)
    assert len(watched) == 0


def test_a_host_without_training_kernels_is_refused_by_name(monkeypatch):
    monkeypatch.delattr(comfy.model_management, "in_training")
    with pytest.raises(ValueError, match=r"for Flux: update ComfyUI, or connect a depth head of"):
        sampled("flux")
    guider = SimpleNamespace(model_patcher=patcher("flux"))  # Classifier Guidance has no input for one
    with pytest.raises(ValueError, match=r"^Classifier Guidance needs .* give for Flux: update ComfyUI\.$"):
        require_differentiable(guider, torch.zeros(1, 4, 8, 8), CLASSIFIER)


class EightfoldVAE:
    """Pixels, averaged over 8 x 8, in the channels of a latent."""

    def vae_encode_crop_pixels(self, pixels):
        height, width = (size // 8 * 8 for size in pixels.shape[1:3])
        return pixels[:, :height, :width, :3]

    def encode(self, pixels):
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return 4 * small.mean(1, keepdim=True).repeat(1, 16, 1, 1) - 2


def pictures(count=4):
    """Images whose brightness is their depth."""
    coarse = torch.rand(count, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(coarse, (128, 96), mode="bilinear").movedim(1, -1)
    return image.expand(-1, -1, -1, 3).contiguous()


def train(kind, **changed):
    given = {"model": patcher(kind), "vae": EightfoldVAE(), "images": pictures(), "depths": pictures()}
    given |= {"steps": 3, "batch_size": 2, "positive": tiny.prompt(0)}
    return execute(InnerTrainDepthHead, **given | changed)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_read_by_default(kind):
    made = head(kind).head
    assert (made.model_family, made.network.branch_taps["strong"]) == FAMILIES[kind][1:]
    assert made.network.token_norm


@pytest.mark.parametrize("kind", ["flux", "qwen"])
def test_a_head_is_trained_saved_and_read(kind, tmp_path):
    trained, report = train(kind)
    network = trained.head.network

    assert report.shape[0] == 1
    path = tmp_path / "trained.safetensors"
    save_depth_head(path, trained.head)
    loaded = load_depth_head(path)
    assert loaded.network.config == network.config
    estimates = [
        execute(
            InnerDepthEstimate,
            model=patcher(kind),
            depth_head=HostedDepthHead.of(of_file),
            latent={"samples": tiny.noise(*latent(kind).shape, seed=5)},
            positive=tiny.prompt(0),
            ensemble=1,
        )[2]
        for of_file in (trained.head, loaded)
    ]
    assert estimates[0].shape == (1, 16, 12)
    assert estimates[0].std() > 1e-4
    assert torch.equal(*estimates)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"positive": None},
            "This model, Flux, cannot be evaluated without a prompt: connect one to positive",
        ),
        ({"architecture": "readout"}, "and Flux with 5 blocks of 48 channels has none: choose pixel_mlp"),
        ({"blocks": "o1"}, r"this model has no block o1\. It has b0-b4, m0"),
    ],
)
def test_what_cannot_be_trained_on_is_one_sentence(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        train("flux", **changed)


def test_a_head_of_another_transformer_is_refused_by_name():
    with pytest.raises(ValueError, match=r"features of Flux with .* but this model is Lumina2 with 3 blocks"):
        require_head_fits(head("flux").head, patcher("lumina"))
