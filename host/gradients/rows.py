"""Whether the rows of a forward pass may be evaluated separately.

The host's models compute each row of a batch from that row alone. Code of other nodes inside the pass may
not: NAG compares the attention of the two prompts, BrushNet adds a tensor with as many rows as the sampler's
batch, HyperTile and ToMe draw random numbers once for all rows. We cannot know what such code does, so its
presence decides. Only the modules listed here keep rows independent.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

from ..keys import CALC_COND_BATCH_FUNCTION, INNERMOST_KEY, WRAPPER_KEY
from ..taps.hooks import ThreadHook
from .patches import has_foreign_forward

# Modules of the host whose code computes row by row and draws no random numbers: FreeU, FreeU_V2 and
# PatchModelAddDownscale, and the layers of LoRAs in bypass mode. The host names a node's module by its path.
ROW_BY_ROW = re.compile(
    r"(.*[./\\])?comfy_extras[./\\](nodes_freelunch|nodes_model_downscale)|comfy\.weight_adapter\.bypass"
)
ROW_BY_ROW_WRAPPERS = (WRAPPER_KEY, INNERMOST_KEY, "torch.compile")
FUNCTION_WRAPPER = "model_function_wrapper"


def rows_are_independent(model: torch.nn.Module, transformer_options: Mapping[str, Any]) -> bool:
    """False if code of other nodes in this pass may make the output of one row depend on another.

    model: a BaseModel of the host. transformer_options: as an APPLY_MODEL wrapper gets them.
    """
    return all(_is_row_by_row(function) for function in foreign_functions(model, transformer_options))


def lists_are_independent(model: torch.nn.Module, model_options: Mapping[str, Any]) -> bool:
    """False if code of other nodes may make the prediction for one list of conditions depend on another.

    model_options: of an evaluation. Other nodes can change the passes, and also how an evaluation is split
    into passes.
    """
    options = model_options["transformer_options"]
    changed = FUNCTION_WRAPPER in model_options or CALC_COND_BATCH_FUNCTION in model_options
    wrapped = options.get("wrappers", {}).get(WrappersMP.CALC_COND_BATCH, {}).keys() - {WRAPPER_KEY}
    return not changed and not wrapped and rows_are_independent(model, options)


def foreign_functions(model: torch.nn.Module, transformer_options: Mapping[str, Any]) -> Iterator[Any]:
    """The functions of other nodes that run inside a forward pass."""
    for of_name in transformer_options.get("patches", {}).values():
        yield from of_name
    for of_name in transformer_options.get("patches_replace", {}).values():
        yield from of_name.values()
    override = transformer_options.get("optimized_attention_override")
    if override is not None:
        yield override
    yield from foreign_wrappers(transformer_options)
    for module in model.modules():
        if has_foreign_forward(module):
            yield vars(module)["forward"]
        hooks = *module._forward_pre_hooks.values(), *module._forward_hooks.values()
        yield from (hook for hook in hooks if not isinstance(hook, ThreadHook))


def foreign_wrappers(transformer_options: Mapping[str, Any]) -> Iterator[Any]:
    """The wrappers of other nodes that run around and inside a forward pass."""
    for wrapper_type in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL):
        for key, wrappers in transformer_options.get("wrappers", {}).get(wrapper_type, {}).items():
            if key not in ROW_BY_ROW_WRAPPERS:
                yield from wrappers


def _is_row_by_row(function: Any) -> bool:
    return ROW_BY_ROW.fullmatch(getattr(function, "__module__", None) or "") is not None
