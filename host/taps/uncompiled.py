"""Passes that are read, tagged or differentiated run uncompiled.

TorchCompileModel tells PyTorch not to look whether transformer_options changed, and PyTorch does not look for
new hooks either. So a compiled pass would run as the first one did: without our taps, with those of a pass
that is over, or with a tag that is no longer there.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def can_run_uncompiled() -> bool:
    """Whether this PyTorch, 2.6 or later, can run a compiled module uncompiled."""
    return hasattr(torch.compiler, "set_stance")


def uncompiled() -> AbstractContextManager[Any]:
    """Context in which compiled modules run uncompiled, where PyTorch can."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager") if can_run_uncompiled() else nullcontext()
