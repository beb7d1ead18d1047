"""Makes the host, and the checkout as the package `inner_guidance`, importable in this process.

For training scripts, benchmarks, experiments and tests, which run outside the server.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from .setup_host import SetupError, host_folder
from .torchvision_shim import import_torchvision

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"


def import_host(device: str) -> None:
    """Makes `comfy` importable, with the differentiable attention of torch.

    Must run before anything of `comfy` is imported.

    Raises:
        SystemExit: when there is no host; the sentence says how to get it.
    """
    try:
        sys.path.insert(0, str(host_folder()))
    except SetupError as error:
        raise SystemExit(str(error)) from error
    import_torchvision()

    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = device == "cpu"
    args.use_pytorch_cross_attention = True


def import_pack(device: str) -> None:
    """Makes host and pack importable. Must run before anything of `comfy` or `inner_guidance` is imported.

    Raises:
        SystemExit: when there is no host; the sentence says how to get it.
    """
    import_host(device)
    register_pack()


def register_pack() -> None:
    """Makes the checkout importable as `inner_guidance`, without running its entry point.

    `python -m` puts the checkout on the path, where its folder `nodes` would hide the host's nodes.py.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    spec = importlib.util.spec_from_file_location(
        "inner_guidance", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["inner_guidance"] = importlib.util.module_from_spec(spec)
