"""Makes the host, and the checkout as the package `inner_guidance`, importable in this process.

For tools/run.py and the tests, which run outside the server.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path

from .setup_host import ROOT, host_folder
from .torchvision_shim import import_torchvision


def import_host(device: str) -> argparse.Namespace:
    """Makes `comfy` importable on the "cpu" or the "gpu" that it finds; returns the host's launch options.

    Call it before anything of `comfy` is imported. The host reads most of its launch options when
    `comfy.model_management` is imported: change them before that. Raises SetupError when there is no host;
    the message says how to get it.
    """
    sys.path.insert(0, str(host_folder()))
    import_torchvision()
    launch_options = importlib.import_module("comfy.cli_args").args
    launch_options.cpu = device == "cpu"
    return launch_options


def register_pack() -> None:
    """Makes the checkout importable as `inner_guidance`, without running its entry point.

    The checkout leaves the path: its folder `nodes` would hide the host's nodes.py.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    spec = importlib.util.spec_from_file_location(
        "inner_guidance", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["inner_guidance"] = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]  # not None for a .py
