"""The nodes of the host that change a run and need more than a model: files, other models, prompts."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import NamedTuple

import comfy.cldm.cldm
import comfy.controlnet
import comfy.gligen
import comfy_extras.nodes_hooks as hooks
import comfy_extras.nodes_hypernetwork as hypernetwork
import comfy_extras.nodes_lora_debug as bypass
import comfy_extras.nodes_model_merging as merging
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file

import nodes as stock
from inner_guidance.tests.support import tiny_configs as configs
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.compiled_models import compiled

RANK = 2
LORA_LAYERS = ("attn1.to_q", "attn1.to_v", "attn2.to_k", "ff.net.2")


class Inputs(NamedTuple):
    """What a KSampler gets."""

    model: ModelPatcher
    positive: list
    negative: list


@cache
def folder():
    """A folder of this process, in which the host looks for the files of the loaders from now on."""
    made = TemporaryDirectory()
    for kind in ("loras", "hypernetworks"):
        folder_paths.add_model_folder_path(kind, made.name)
    return made


@cache
def lora():
    """The name of a file with a LoRA of some layers of each block of the "small" UNet."""
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for name, weight in tiny.patcher().model.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer.endswith(LORA_LAYERS):
            out, into = weight.shape
            weights[f"{layer}.lora_up.weight"] = torch.randn(out, RANK, generator=generator) * 0.2
            weights[f"{layer}.lora_down.weight"] = torch.randn(RANK, into, generator=generator) * 0.2
    save_file(weights, Path(folder().name, "lora.safetensors"))
    return "lora.safetensors"


@cache
def hypernetwork_file():
    """The name of a file with a layer for the keys and one for the values that a prompt becomes."""
    generator = torch.Generator().manual_seed(4)
    wide = configs.CONTEXT
    layer = {
        "linear.weight": torch.randn(wide, wide, generator=generator) * 0.2,
        "linear.bias": torch.zeros(wide),
    }
    torch.save({wide: [layer, layer]}, Path(folder().name, "hypernetwork.pt"))
    return "hypernetwork.pt"


def random_weights(network, seed):
    """The network with weights as the tiny models have them."""
    tiny.initialise(SimpleNamespace(diffusion_model=network), seed)
    return network.eval()


@cache
def control_net():
    """The host's ControlNet for the "small" UNet."""
    config = {name: value for name, value in configs.SMALL.items() if name != "out_channels"}
    network = comfy.cldm.cldm.ControlNet(hint_channels=3, **config)
    return comfy.controlnet.ControlNet(random_weights(network, 4), load_device=tiny.CPU)


@cache
def gligen():
    """The host's GLIGEN for the "small" UNet: a layer for each of its transformers."""
    widths = (32, 64, 64, 64, 64, 32, 32)
    layers = [comfy.gligen.GatedSelfAttentionDense(w, configs.CONTEXT, 4, w // 4) for w in widths]
    position = comfy.gligen.PositionNet(configs.CONTEXT, configs.CONTEXT)
    network = random_weights(comfy.gligen.Gligen(layers, position, configs.CONTEXT), 5)
    for layer in layers:
        layer.alpha_attn.fill_(1.0)
        layer.alpha_dense.fill_(1.0)
    return ModelPatcher(network, load_device=tiny.CPU, offload_device=tiny.CPU)


class Text:
    """A CLIP, as GLIGENTextBoxApply asks it."""

    def tokenize(self, text):
        return text

    def encode_from_tokens(self, tokens, return_pooled):
        embedded = tiny.prompt(5)[0][0]
        return embedded, embedded[:, 0]


PICTURE = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(7))
LEFT_HALF = (torch.arange(16) < 8).float().expand(1, 16, 16)
OTHER = tiny.prompt(2)


def on_model(change):
    """The change of what a KSampler gets by a change of the model."""
    return lambda run: run._replace(model=change(run.model))


def on_positive(node, *values):
    """The change of the positive prompt by a node."""
    return lambda run: run._replace(positive=node(run.positive, *values)[0])


def merged(node, *values):
    """The change by a node that merges the model with another one."""
    return on_model(lambda model: node(model, tiny.patcher(seed=1), *values)[0])


def with_blocks_merged(model):
    return merging.ModelMergeBlocks().merge(model, tiny.patcher(seed=1), input=0.5, middle=0.2, out=0.8)[0]


def halves(run):
    """Two prompts, one of them on the left."""
    left = stock.ConditioningSetArea().append(run.positive, 64, 128, 0, 0, 1.0)[0]
    return run._replace(positive=stock.ConditioningCombine().combine(left, OTHER)[0])


def with_control_net(run):
    apply = stock.ControlNetApplyAdvanced().apply_controlnet
    positive, negative = apply(run.positive, run.negative, control_net(), PICTURE, 0.8, 0.0, 1.0)
    return run._replace(positive=positive, negative=negative)


def with_control_net_on_positive(run):
    apply = stock.ControlNetApply().apply_controlnet
    return run._replace(positive=apply(run.positive, control_net(), PICTURE, 0.8)[0])


def with_gligen(run):
    append = stock.GLIGENTextBoxApply().append
    return run._replace(positive=append(run.positive, Text(), gligen(), "", 64, 64, 32, 32)[0])


def with_hooks(run):
    (made,) = hooks.CreateHookLoraModelOnly().create_hook_model_only(lora(), 0.8)
    set_properties = hooks.ConditioningSetProperties().set_properties
    return run._replace(positive=set_properties(run.positive, 1.0, "default", hooks=made)[0])


@cache
def once_compiled():
    """A compiled model that has sampled without guidance: a compiler may miss what comes later."""
    model = compiled(tiny.patcher())
    tiny.sample(model)
    return model


# By the node's id, or what it is set to do.
NODES = {
    "ConditioningAverage": on_positive(stock.ConditioningAverage().addWeighted, OTHER, 0.5),
    "ConditioningCombine": on_positive(stock.ConditioningCombine().combine, OTHER),
    "ConditioningConcat": on_positive(stock.ConditioningConcat().concat, OTHER),
    "ConditioningSetArea": halves,
    "ConditioningSetAreaPercentage": on_positive(
        stock.ConditioningSetAreaPercentage().append, 0.5, 1.0, 0.0, 0.0, 1.0
    ),
    "ConditioningSetMask": on_positive(stock.ConditioningSetMask().append, LEFT_HALF, "default", 1.0),
    "ConditioningSetProperties (LoRA hook)": with_hooks,
    "ConditioningSetTimestepRange": on_positive(stock.ConditioningSetTimestepRange().set_range, 0.0, 0.5),
    "ConditioningZeroOut": on_positive(stock.ConditioningZeroOut().zero_out),
    "ControlNetApply": with_control_net_on_positive,
    "ControlNetApplyAdvanced": with_control_net,
    "GLIGENTextBoxApply": with_gligen,
    "HypernetworkLoader": on_model(
        lambda model: tiny.result_of(hypernetwork.HypernetworkLoader.execute(model, hypernetwork_file(), 1.0))
    ),
    "LoraLoader": on_model(lambda model: stock.LoraLoader().load_lora(model, None, lora(), 0.8, 0.0)[0]),
    "LoraLoaderBypass": on_model(
        lambda model: bypass.LoraLoaderBypass().load_lora(model, None, lora(), 0.8, 0.0)[0]
    ),
    "LoraLoaderModelOnly": on_model(
        lambda model: stock.LoraLoaderModelOnly().load_lora_model_only(model, lora(), 0.8)[0]
    ),
    "ModelMergeAdd": merged(merging.ModelAdd().merge),
    "ModelMergeBlocks": on_model(with_blocks_merged),
    "ModelMergeSimple": merged(merging.ModelMergeSimple().merge, 0.5),
    "ModelMergeSubtract": merged(merging.ModelSubtract().merge, 1.0),
    "TorchCompileModel": on_model(lambda _: once_compiled()),
    "UNETLoader (fp8_e4m3fn)": on_model(lambda _: tiny.patcher(weights=torch.float8_e4m3fn)),
}
# They make the model, so no node can be before them.
LOADERS = {"TorchCompileModel", "UNETLoader (fp8_e4m3fn)"}
# They are to change the speed alone.
SAME_RESULT = {"TorchCompileModel"}
