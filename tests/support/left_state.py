"""What a run could leave behind: in a patcher, its model, the host's modules, PyTorch and the logging."""

import logging
import sys

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

# The host's own notes on what is loaded.
OF_HOST = {"current_patcher", "current_weight_patches_uuid", "model_loaded_weight_memory", "device"}


class Same:
    """Equal to itself alone; it keeps the object, so that no other can take its id."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        if not isinstance(other, Same):
            return False
        # A method is bound anew each time that it is asked for.
        bound = hasattr(self.value, "__func__") and self.value == other.value
        return bound or self.value is other.value

    __hash__ = None


def spread(value, path):
    """(path, value) of everything in nested dictionaries, lists and tuples."""
    if isinstance(value, dict):
        yield path, "dict"
        for key, of_key in value.items():
            yield from spread(of_key, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        yield path, len(value)
        for i, item in enumerate(value):
            yield from spread(item, f"{path}[{i}]")
    elif isinstance(value, torch.Tensor):
        facts = value.data_ptr(), value.dtype, value.shape, value.requires_grad, value.is_inference()
        yield path, (*facts, value.detach().double().sum().item())
    elif isinstance(value, bool | int | float | str | None):
        yield path, value
    else:
        yield path, Same(value)


def of_patcher(patcher):
    """A ModelPatcher, and every module of its model: hooks, forwards, weights, flags."""
    held = {name: value for name, value in vars(patcher).items() if name != "model"}
    yield from spread(held, "patcher")
    for name, module in patcher.model.named_modules():
        held = {key: value for key, value in vars(module).items() if key not in OF_HOST}
        yield from spread(held, f"model.{name}")


def of_host():
    """Functions, classes with what they hold, and flags of the host's modules."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] not in ("comfy", "comfy_extras", "nodes", "execution"):
            continue
        for key, value in list(vars(module).items()):
            if isinstance(value, type):
                for of_class, held in vars(value).items():
                    yield f"{name}.{key}.{of_class}", Same(held)
            elif callable(value) or isinstance(value, bool | None):
                yield f"{name}.{key}", Same(value)


def of_torch():
    """Modes, global hooks, functions that are easily replaced, and the random numbers to come."""
    yield "gradients", torch.is_grad_enabled()
    yield "inference mode", torch.is_inference_mode_enabled()
    yield "autocast", torch.is_autocast_enabled("cpu")
    yield "random numbers", torch.get_rng_state().tolist()
    yield from spread(_get_current_function_mode_stack(), "function modes")
    yield from spread(_get_current_dispatch_mode_stack(), "dispatch modes")
    hooks = {key: value for key, value in vars(torch.nn.modules.module).items() if key.startswith("_global")}
    yield from spread(hooks, "hooks")
    for holder in (torch, torch.Tensor, torch.nn.functional, torch.nn.Module, torch.nn.Linear):
        for key, value in list(vars(holder).items()):
            if callable(value):
                yield f"{holder.__name__}.{key}", Same(value)


def state_of(*patchers):
    """All of it, by path."""
    found = dict(of_host()) | dict(of_torch())
    for i, patcher in enumerate(patchers):
        found |= {f"{i}: {path}": value for path, value in of_patcher(patcher)}
    return found | dict(spread(logging.getLogger().handlers, "log handlers"))


def changed(before, after):
    """The paths that were added, removed, or hold something else."""
    paths = before.keys() | after.keys()
    absent = object()
    return sorted(path for path in paths if before.get(path, absent) != after.get(path, absent))
