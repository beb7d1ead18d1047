"""A device like a GPU without a GPU: its tensors say that they lie on it, and do not meet those of the CPU.

They are computed with on the CPU, so results are the CPU's. An operation on tensors of several devices raises
MixedDevicesError where it fails on a GPU. PyTorch's `meta` lends the name; its index makes it two.
"""

from contextlib import contextmanager
from functools import cache

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
CPU, DEVICE, OTHER = torch.device("cpu"), torch.device("meta", 0), torch.device("meta", 1)
COPIES = (aten._to_copy.default, aten.copy_.default)
# The positions may lie on the CPU.
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


class MixedDevicesError(Exception):
    """An operation got tensors of several devices."""


class OnDevice(torch.Tensor):
    """A tensor of the device; `held` has its numbers."""

    @staticmethod
    def __new__(cls, held, device):
        t = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        t.held = held
        return t

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


@contextmanager
def second_device():
    """Context in which tensors can be made on the device, and copied to it."""
    with Computed(), FromNumbers():
        yield


class Computed(TorchDispatchMode):
    """Mode in which operations on tensors of the CPU may give one of the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


class FromNumbers(TorchFunctionMode):
    """Mode in which lists of numbers become tensors on the CPU first: for `meta` PyTorch would drop them."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") is not None:
            return func(*args, **kwargs | {"device": CPU}).to(kwargs["device"])
        if func is torch.Tensor.new_tensor:
            like, numbers = args
            return torch.tensor(numbers, **{"dtype": like.dtype} | kwargs).to(like.device)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], OnDevice):
            whole, index, *value = args
            index = tuple(map(positions, index)) if isinstance(index, tuple) else positions(index)
            return func(whole, index, *value)
        return func(*args, **kwargs)


def positions(index):
    return torch.tensor(index) if isinstance(index, list) else index


def computed(func, args, kwargs):
    """An operation, on the numbers of its tensors; raises MixedDevicesError."""
    device = device_of_result(func, args, kwargs)
    numbers, further = tree_map_only(OnDevice, lambda t: t.held, (args, kwargs))
    if further.get("device") is not None:
        further["device"] = CPU
    out = func(*numbers, **further)
    if device == CPU:
        return out
    out = tree_map_only(torch.Tensor, lambda t: OnDevice(t, device), out)
    return return_and_correct_aliasing(func, args, kwargs, out) if shares_storage(func) else out


@cache
def shares_storage(func):
    """Whether an operation returns one of its arguments, or a view of one."""
    return any(argument.alias_info is not None for argument in func._schema.arguments)


def device_of_result(func, args, kwargs):
    """The device of an operation's result; raises MixedDevicesError."""
    leaves = tree_leaves((args[:1] if func in INDEXING else args, kwargs))
    tensors = [t for t in leaves if isinstance(t, torch.Tensor)]
    asked = kwargs.get("device")
    if func in COPIES:
        return asked or tensors[0].device
    # A single number of the CPU may meet any tensor.
    devices = {t.device for t in tensors if t.ndim or t.device != CPU}
    if len(devices) > 1:
        raise MixedDevicesError(f"{func} on {', '.join(sorted(map(str, devices)))}")
    return asked or next(iter(devices), CPU)
