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
