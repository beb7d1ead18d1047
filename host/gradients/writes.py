"""In-place operations with autograd: tensors that the graph keeps are copied before a write."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakSet

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class KeptTensor:
    """A tensor that the graph keeps for the backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.version = tensor._version

    def unchanged(self) -> Tensor:
        """The tensor. Raises RuntimeError if something has written into it since."""
        if self.tensor._version != self.version:
            raise RuntimeError("The gradient needs a tensor of another node that was overwritten afterwards.")
        return self.tensor


class CopyBeforeWrite(TorchDispatchMode):
    """Mode that copies tensors of the graph when an operation is about to write into their storage.

    PyTorch's allow_mutation_on_saved_tensors does this for whole tensors; FreeU writes into half of one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, WeakSet[KeptTensor]] = {}  # by the address of the storage

    def keep(self, t: Tensor) -> KeptTensor:
        """Pack hook of saved_tensors_hooks."""
        kept = KeptTensor(t)
        self.kept.setdefault(t.untyped_storage().data_ptr(), WeakSet()).add(kept)
        return kept

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The operation, after the copies."""
        kwargs = kwargs or {}
        for i, name in written_arguments(func):
            written = args[i] if i < len(args) else kwargs.get(name)
            tree_map_only(Tensor, self.copy_kept, written)
        return func(*args, **kwargs)

    def copy_kept(self, written: Tensor) -> None:
        """Move the kept tensors on this storage to storages of their own."""
        for kept in self.kept.pop(written.untyped_storage().data_ptr(), ()):
            kept.tensor = kept.unchanged().clone()
            kept.version = kept.tensor._version


@cache
def written_arguments(operation: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of the arguments that an operation of PyTorch writes into."""
    return tuple(
        (i, argument.name)
        for i, argument in enumerate(operation._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


@contextmanager
def writes_allowed() -> Iterator[None]:
    """Context in which a forward pass may write into tensors that its backward pass needs."""
    copies = CopyBeforeWrite()
    with copies, saved_tensors_hooks(copies.keep, KeptTensor.unchanged):
        yield
