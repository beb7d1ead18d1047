"""Attention that the host calls without transformer_options, so that no override sees it: Ernie, PixArt."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

ATTENTION = "optimized_attention"
# Of the forwards of modules, which all runs of a model share.
REPLACING = threading.Lock()


class PerThreadForward:
    """A module's forward while threads override its attention: in such a thread, the last of its copies."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.before = vars(module).get("forward")
        self.own: Callable[..., Any] = module.forward
        self.copies: defaultdict[int, list[Callable[..., Any]]] = defaultdict(list)

    @property
    def of_thread(self) -> Any:
        """The forward in this thread."""
        copies = self.copies.get(threading.get_ident())
        return copies[-1] if copies else self.own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward."""
        return self.of_thread(*args, **kwargs)


@contextmanager
def overridden(module: torch.nn.Module, override: Callable[..., Tensor]) -> Iterator[None]:
    """Context in which the attention that a module calls goes through an override, as in other models.

    The module's forward is then, in this thread, the host's own code, with the global name
    `optimized_attention` bound to the override. If another node has replaced that forward, the override sees
    nothing.
    """
    with REPLACING:
        forward = module.forward
        replaced = forward if isinstance(forward, PerThreadForward) else PerThreadForward(module)
        host_code = getattr(replaced.of_thread, "__func__", None)
        overridable = host_code is not None and ATTENTION in host_code.__globals__
        if overridable:
            replaced.copies[threading.get_ident()].append(with_attention(host_code, override, module))
            module.forward = replaced
    try:
        yield
    finally:
        if overridable:
            with REPLACING:
                end_copy(module, replaced)


def with_attention(forward: Any, override: Callable[..., Tensor], module: torch.nn.Module) -> MethodType:
    """A copy of a module's forward, with the global name bound to the override of what it was."""
    names = forward.__globals__ | {ATTENTION: partial(override, forward.__globals__[ATTENTION])}
    copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    return MethodType(copy, module)


def end_copy(module: torch.nn.Module, replaced: PerThreadForward) -> None:
    """Take this thread's last copy away; with the last of all, the module has its own forward again."""
    thread = threading.get_ident()
    replaced.copies[thread].pop()
    if not replaced.copies[thread]:
        del replaced.copies[thread]
    if replaced.copies:
        return
    del module.forward
    if replaced.before is not None:
        module.forward = replaced.before
