"""Passes that are read, tagged or differentiated run uncompiled.

TorchCompileModel tells PyTorch not to look whether transformer_options changed, and PyTorch does not look for
new hooks either. So a compiled pass would run as the first one did: without our taps, with those of a pass
that is over, or with a tag that is no longer there.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP


def can_run_uncompiled() -> bool:
    """Whether this PyTorch, 2.6 or later, can run a compiled module uncompiled."""
    return hasattr(torch.compiler, "set_stance")


class Stance:
    """PyTorch's stance, which the whole process shares: eager from the first pass that asks until the last.

    With several GPUs, the passes of a step run in several threads. If each restored what it had found, the
    first to end would compile the others, and the last would leave the process uncompiled.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.passes = 0
        self.eager = ExitStack()

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Context of a pass."""
        with self.lock:
            if not self.passes:
                self.eager.enter_context(torch.compiler.set_stance("force_eager"))
            self.passes += 1
        try:
            yield
        finally:
            with self.lock:
                self.passes -= 1
                if not self.passes:
                    self.eager.close()


STANCE = Stance()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Context in which compiled modules run uncompiled, where PyTorch can."""
    if "torch._dynamo" not in sys.modules or not can_run_uncompiled():
        yield  # nothing is compiled, and the import takes seconds
        return
    with STANCE.uncompiled():
        yield


def refuse_uncontrollable_compiler(model: ModelPatcher, node: str) -> None:
    """Raise ValueError for a compiled model if PyTorch is older than 2.6 and cannot run it uncompiled."""
    if can_run_uncompiled():
        return
    patches = [patch for patch in model.object_patches.values() if isinstance(patch, torch.nn.Module)]
    compiled = any(
        hasattr(module, "_orig_mod")
        for part in (model.get_model_object("diffusion_model"), *patches)
        for module in part.modules()
    )
    if compiled or "torch.compile" in model.wrappers.get(WrappersMP.APPLY_MODEL, {}):
        raise ValueError(
            f"{node} needs PyTorch 2.6 or later with torch.compile: update PyTorch, or remove the node that "
            "compiles the model."
        )
