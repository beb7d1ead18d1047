"""Prints the seconds that the pack takes to import, beside all that the host has imported by then.

    python -m tools.run benchmarks.import_time

What the host's own extra nodes import is counted as the pack's, if the pack needs it: it is an upper bound.
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
    """In a fresh process: a second import costs nothing."""
    importlib.import_module("nodes")  # the host's
    pack = sys.modules["inner_guidance"]
    gc.collect()  # otherwise a full collection of the host's objects, 0.2 s, may fall among the pack's
    started = time.perf_counter()
    SourceFileLoader("inner_guidance", str(ROOT / "__init__.py")).exec_module(pack)
    asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    print(time.perf_counter() - started)
