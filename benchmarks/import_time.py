"""Prints how many seconds the pack takes to import after the host.

    python -m tools.run benchmarks.import_time

This is an upper bound: the host's extra nodes are not loaded, so modules that they share with the pack count
as the pack's.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
import time
from importlib.machinery import SourceFileLoader

from ..tools.setup_host import ROOT


def main() -> None:
    """Import the pack. Needs a fresh process, where nothing of it is cached."""
    importlib.import_module("nodes")  # the host's
    pack = sys.modules["inner_guidance"]
    gc.collect()  # or a full collection of the host's objects, 0.2 s, may happen during the import
    started = time.perf_counter()
    SourceFileLoader("inner_guidance", str(ROOT / "__init__.py")).exec_module(pack)
    asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    print(time.perf_counter() - started)
