"""Block names: what `m0`, `d2`, `u0-u2`, `m0.0` and `b12` mean in a given model.

Attention is named by the blocks that have some, features by all blocks: `i3`, `m0`, `o11`, `r5`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch

from .joint_models import JointModel, joint_model

TERM = re.compile(r"([a-z])([0-9]{1,9})(?:\.([0-9]{1,9})|-([a-z])([0-9]{1,9}))?")
# Every block of the largest model written out has 500.
LONGEST_TEXT = 4000
UNET_PARTS = {
    "d": ("input", "input_blocks"),
    "m": ("middle", "middle_block"),
    "u": ("output", "output_blocks"),
}
MODELS = "a model that docs/models.md of Inner Guidance lists"


class AttentionLayer(NamedTuple):
    """One self-attention layer, as the host's `transformer_options` name it during the forward pass.

    UNets: part "input", "middle" or "output", number the block's, transformer the one inside the block. Joint
    models: part is the block type, "double" or "single", number the block's among those, transformer 0.
    """

    part: str
    number: int
    transformer: int


class FeatureLayer(NamedTuple):
    """What a block computes: part as in AttentionLayer, number the block's.

    Part "residual" is the residual branch of the ResBlock in the UNet's output block of that number, before
    the shortcut is added: what Readout heads are trained on.
    """

    part: str
    number: int


Layer = TypeVar("Layer", AttentionLayer, FeatureLayer)
Blocks = Mapping[str, tuple[Layer, ...]]


def attention_blocks(diffusion_model: torch.nn.Module) -> dict[str, tuple[AttentionLayer, ...]]:
    """The blocks of a model that have self-attention, by name, in the order of the forward pass.

    UNets: d0, d1, ... down, m0, u0, u1, ... up, counted among the blocks with attention; the layers are the
    transformers inside. Joint models (joint_models.py): b0, b1, ... through all stacks, and m0 for the one at
    half depth, so that the node's default exists there too. Half depth is an analogy to UNets; no experiment
    has shown that it is best.

    Raises ValueError for models whose attention cannot be read.
    """
    joint = joint_model(diffusion_model)
    if joint is not None:
        return _joint_blocks(
            diffusion_model, joint, lambda block_type, number: AttentionLayer(block_type, number, 0)
        )
    if not hasattr(diffusion_model, "input_blocks"):
        raise ValueError(
            f"The attention of this model, {type(diffusion_model).__name__}, cannot be read: use {MODELS}."
        )
    found = {}
    for letter, (part, attribute) in UNET_PARTS.items():
        blocks = getattr(diffusion_model, attribute, None)
        if blocks is None:  # some distilled UNets have no middle block
            continue
        counted = 0
        for number, block in enumerate([blocks] if part == "middle" else blocks):
            layers = tuple(
                AttentionLayer(part, number, index)
                for module in block
                for index, transformer in enumerate(getattr(module, "transformer_blocks", ()))
                if not transformer.disable_self_attn
            )
            if layers:
                found[f"{letter}{counted}"] = layers
                counted += 1
    return found


def feature_blocks(diffusion_model: Any) -> dict[str, tuple[FeatureLayer, ...]]:
    """The features of a model, by name, in the order of the forward pass.

    UNets: the outputs of all blocks, with or without attention: i0, i1, ... down, m0, o0, o1, ... up, where
    the number is the place in the host's input_blocks and output_blocks; r0, r1, ... are the residual
    branches in o0, o1, .... Joint models: b0, b1, ... through all stacks, and m0 for the one at half depth.

    Raises ValueError for models whose features cannot be read.
    """
    joint = joint_model(diffusion_model)
    if joint is not None:
        return _joint_blocks(diffusion_model, joint, FeatureLayer)
    if not hasattr(diffusion_model, "input_blocks"):
        raise ValueError(
            f"The features of this model, {type(diffusion_model).__name__}, cannot be read: use {MODELS}."
        )
    found: dict[str, tuple[FeatureLayer, ...]] = {
        f"i{i}": (FeatureLayer("input", i),) for i in range(len(diffusion_model.input_blocks))
    }
    if getattr(diffusion_model, "middle_block", None) is not None:
        found["m0"] = (FeatureLayer("middle", 0),)
    for i in range(len(diffusion_model.output_blocks)):
        found |= {f"r{i}": (FeatureLayer("residual", i),), f"o{i}": (FeatureLayer("output", i),)}
    return found


def _joint_blocks(
    diffusion_model: torch.nn.Module, joint: JointModel, layer: Callable[[str, int], Layer]
) -> dict[str, tuple[Layer, ...]]:
    """b0, b1, ... and m0 of a joint model; layer(block type, number)."""
    layers = [
        layer(stack.block_type, number)
        for stack in joint.stacks
        for number in range(len(getattr(diffusion_model, stack.attribute)))
    ]
    found: dict[str, tuple[Layer, ...]] = {f"b{i}": (layer,) for i, layer in enumerate(layers)}
    return found | {"m0": found[f"b{len(layers) // 2}"]}


def layers_in(available: Blocks[Layer]) -> tuple[Layer, ...]:
    """All layers of a model, each once, in the order of the forward pass."""
    return tuple(dict.fromkeys(layer for layers in available.values() for layer in layers))


def layer_names(available: Blocks[Layer]) -> dict[Layer, str]:
    """What each layer is called in a record: "u1.0", a transformer in a block, or the block: "o3", "b12"."""
    names: dict[Layer, str] = {}
    for name, layers in available.items():
        for index, layer in enumerate(layers):
            in_unet = isinstance(layer, AttentionLayer) and name[0] in UNET_PARTS
            names.setdefault(layer, f"{name}.{index}" if in_unet else name)
    return names


def parse_blocks(text: str, available: Blocks[Layer]) -> tuple[Layer, ...]:
    """The layers that a `blocks` input names, each once, in the order of the forward pass.

    text: comma-separated names (m0), ranges (u0-u2) or single transformers (m0.3) of `available`, which comes
    from attention_blocks or feature_blocks. Raises ValueError, with the names there are, for anything else.
    """
    if len(text) > LONGEST_TEXT:
        raise ValueError(
            f"blocks is {len(text)} characters long, {LONGEST_TEXT} are the most: write ranges. "
            f"{_listing(available)}"
        )
    chosen: set[Layer] = set()
    for term in "".join(text.split()).lower().strip(",").split(","):
        chosen.update(_layers_of(term, available))
    return tuple(layer for layer in layers_in(available) if layer in chosen)


def _layers_of(term: str, available: Blocks[Layer]) -> tuple[Layer, ...]:
    match = TERM.fullmatch(term)
    last_name = next((name for name in reversed(list(available)) if name != "m0"), "u0")
    example = f"{last_name[0]}0-{last_name[0]}2"
    if match is None:
        raise ValueError(
            f"blocks: {_quoted(term)} is not a block name. Write names such as m0, ranges such as {example}, "
            f"separated by commas; a number after a point, m0.0, is one of a block's transformers. "
            f"{_listing(available)}"
        )
    letter, number, transformer, last_letter, last = match.groups()
    if last is not None and (letter != last_letter or int(last) < int(number)):
        raise ValueError(f"blocks: '{term}' is not a range. Write it as {example}. {_listing(available)}")
    names = []
    # Only blocks that the model has, however long the range is.
    for i in range(int(number), int(last or number) + 1):
        names.append(f"{letter}{i}")
        if names[-1] not in available:
            raise ValueError(f"blocks: this model has no block {names[-1]}. {_listing(available)}")
    if transformer is None:
        return tuple(layer for name in names for layer in available[name])
    layers = available[names[0]]
    if int(transformer) >= len(layers):
        raise ValueError(
            f"blocks: block {names[0]} has {len(layers)} transformer{'s' * (len(layers) > 1)}, "
            f"{names[0]}.0{f' to {names[0]}.{len(layers) - 1}' * (len(layers) > 1)}; there is no {term}."
        )
    return (layers[int(transformer)],)


def _quoted(term: str) -> str:
    """A term in quotes, shortened, its control characters escaped."""
    return repr(term if len(term) <= 40 else f"{term[:39]}…")


def _listing(available: Blocks[Layer]) -> str:
    """What this model has: "It has d0-d5, m0, u0-u8."."""
    spans = []
    for letter in dict.fromkeys(name[0] for name in available):
        names = [name for name in available if name[0] == letter]
        spans.append(names[0] if len(names) == 1 else f"{names[0]}-{names[-1]}")
    return f"It has {', '.join(spans)}."
