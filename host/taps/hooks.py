"""The forward hooks of a tap, which act in its thread alone.

Hooks are on the modules, which all runs of a model share. A pass in another thread would hand over its own
queries and keys to a tap that has just been armed.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class ThreadHook:
    """A forward hook or pre-hook, only for passes in `thread`."""

    hook: Callable[..., Any]
    thread: int

    def __call__(self, *args: Any) -> Any:
        """What the hook returns; None leaves arguments and output as they are."""
        return self.hook(*args) if threading.get_ident() == self.thread else None


@contextmanager
def forward_hook(module: torch.nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Context in which this thread's passes through the module call hook(module, args, out)."""
    registered = module.register_forward_hook(ThreadHook(hook, threading.get_ident()))
    try:
        yield
    finally:
        registered.remove()


@contextmanager
def forward_pre_hook(module: torch.nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Context in which this thread's passes through the module call hook(module, args, kwargs) first."""
    own = ThreadHook(hook, threading.get_ident())
    registered = module.register_forward_pre_hook(own, with_kwargs=True)
    try:
        yield
    finally:
        registered.remove()
