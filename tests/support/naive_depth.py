"""Features, depth maps and gradients by plain autograd, through a copy of a tiny model in float64."""

import copy

import torch

from inner_guidance.depth_head.architectures.pixel_mlp import embed_time


def double(module):
    with torch.inference_mode(False):
        return copy.deepcopy(module).double().requires_grad_(False)


def naive_features(model, names, x, sigma, prompt, negative=None, patches=None):
    """Features by name with their graph, the latent that they depend on, and the time.

    From a copy of the UNet in float64. With a negative, both prompts are in the pass, the negative first, as
    the host has them.
    """
    unet = double(model.model.diffusion_model)
    unet.dtype = torch.float64
    sampling = model.get_model_object("model_sampling")
    prompts = [prompt] if negative is None else [negative, prompt]
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.clone().double().requires_grad_()
        sigma = sigma.clone().double()
        features = {}
        for name in names:
            block = unet.output_blocks[int(name[1:])][-1]
            block.register_forward_hook(lambda m, i, out, name=name: features.update({name: out[-len(x) :]}))
        given = sampling.calculate_input(sigma, leaf)
        time = sampling.timestep(sigma.float().clone()).float()
        context = torch.cat([p[0][0].clone().double().expand(len(x), -1, -1) for p in prompts])
        options = {"cond_or_uncond": [1, 0][-len(prompts) :], "patches": patches or {}}
        unet(
            given.repeat(len(prompts), 1, 1, 1),
            time.double().repeat(len(prompts)),
            context=context,
            transformer_options=options,
        )
    return leaf, features, time


def naive_depth(model, network, x, sigma, prompt, negative=None, patches=None):
    """Strong and weak depth map with their graph, and the latent that they depend on."""
    network = double(network)
    leaf, features, time = naive_features(model, network.taps, x, sigma, prompt, negative, patches)
    with torch.inference_mode(False), torch.enable_grad():
        maps = [
            network.strong(*branch_inputs(network, features, "strong", time), x.shape[-2:]),
            network.weak(*branch_inputs(network, features, "weak", time), x.shape[-2:]),
        ]
    return leaf, maps


def branch_inputs(network, features, branch, time):
    """Standardised features and the embedding of the time, in float64: what PixelMLP.branches does."""
    standard = {
        name: standardise(features[name])
        for name, standardise in zip(network.taps, network.standardise, strict=True)
    }
    return [standard[name] for name in network.branch_taps[branch]], embed_time(time).double()


def gradient_of(loss, leaf):
    with torch.inference_mode(False):
        return torch.autograd.grad(loss, leaf)[0]
