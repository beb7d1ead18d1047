"""Block names: what `m0`, `d2`, `u0-u2`, `m0.0` and `b12` mean in a given model."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch

from .joint_models import joint_model

TERM = re.compile(r"([a-z])(\d+)(?:\.(\d+)|-([a-z])(\d+))?")
UNET_PARTS = {
    "d": ("input", "input_blocks"),
    "m": ("middle", "middle_block"),
    "u": ("output", "output_blocks"),
}


class AttentionLayer(NamedTuple):
    """One self-attention layer, as the host's `transformer_options` name it during the forward pass.

    UNets: part "input", "middle" or "output", number the block's, transformer the one inside the block. Joint
    models: part is the block type, "double" or "single", number the block's among those, transformer 0.
    """

    part: str
    number: int
    transformer: int


def attention_blocks(diffusion_model: torch.nn.Module) -> dict[str, tuple[AttentionLayer, ...]]:
    """The blocks of a model that have self-attention, by name, in the order of the forward pass.

    UNets: d0, d1, ... down, m0, u0, u1, ... up, counted among the blocks with attention; the layers are the
    transformers inside. Joint models (joint_models.py): b0, b1, ... through all stacks, and m0, so that the
    node's default is right for them too: the one at half depth. The paper knows no such models; half depth is
    where its layer is in UNets, not the result of an experiment.

    Raises ValueError for models whose attention cannot be read.
    """
    if family := joint_model(diffusion_model):
        layers = [
            AttentionLayer(block_type, number, 0)
            for block_type, attribute in family.stacks
            for number in range(len(getattr(diffusion_model, attribute)))
        ]
        found = {f"b{i}": (layer,) for i, layer in enumerate(layers)}
        return found | {"m0": found[f"b{len(layers) // 2}"]}
    if not hasattr(diffusion_model, "input_blocks"):
        raise ValueError(
            f"The attention of this model, {type(diffusion_model).__name__}, cannot be read: use Stable "
            "Diffusion 1.x, 2.x, XL, 3 or 3.5, SVD, Flux, Chroma, Qwen-Image, Lumina 2 or Z-Image."
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


def parse_blocks(
    text: str, available: Mapping[str, tuple[AttentionLayer, ...]]
) -> tuple[AttentionLayer, ...]:
    """The layers that a `blocks` input names, each once, in the order of the forward pass.

    text: comma-separated names (m0), ranges (u0-u2) or single transformers (m0.3) of `available`, which comes
    from attention_blocks. Raises ValueError, with the names there are, for anything else.
    """
    chosen: set[AttentionLayer] = set()
    for term in text.replace(" ", "").lower().strip(",").split(","):
        chosen.update(_layers_of(term, available))
    in_order = dict.fromkeys(layer for layers in available.values() for layer in layers)
    return tuple(layer for layer in in_order if layer in chosen)


def _layers_of(term: str, available: Mapping[str, tuple[AttentionLayer, ...]]) -> tuple[AttentionLayer, ...]:
    match = TERM.fullmatch(term)
    if match is None:
        raise ValueError(
            f"blocks: '{term}' is not a block name. Write names such as m0, u1, d2, ranges such as u0-u2, or "
            f"one transformer of a block as m0.0, separated by commas. {_listing(available)}"
        )
    letter, number, transformer, last_letter, last = match.groups()
    names = [f"{letter}{number}"]
    if last is not None:
        names = [f"{letter}{i}" for i in range(int(number), int(last) + 1)] if letter == last_letter else []
        if not names:
            raise ValueError(f"blocks: '{term}' is not a range. Write it as u0-u2. {_listing(available)}")
    for name in names:
        if name not in available:
            raise ValueError(f"blocks: this model has no block {name}. {_listing(available)}")
    if transformer is None:
        return tuple(layer for name in names for layer in available[name])
    layers = available[names[0]]
    if int(transformer) >= len(layers):
        raise ValueError(
            f"blocks: block {names[0]} has {len(layers)} transformer{'s' * (len(layers) > 1)}, "
            f"{names[0]}.0{f' to {names[0]}.{len(layers) - 1}' * (len(layers) > 1)}; there is no {term}."
        )
    return (layers[int(transformer)],)


def _listing(available: Mapping[str, tuple[AttentionLayer, ...]]) -> str:
    """What this model has: "It has d0-d5, m0, u0-u8."."""
    spans = []
    for letter in dict.fromkeys(name[0] for name in available):
        names = [name for name in available if name[0] == letter]
        spans.append(names[0] if len(names) == 1 else f"{names[0]}-{names[-1]}")
    return f"It has {', '.join(spans)}."
