"""Makes the checkout importable as `inner_guidance`, in this process, beside the host."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def import_pack(device: str) -> None:
    """Must run before anything of `comfy` or `inner_guidance` is imported.

    Raises:
        SystemExit: when there is no host; the sentence says how to get it.
    """
    from demo.host import import_host

    import_host(device)
    # `python -m` adds the checkout: its folder `nodes` would stand beside the host's nodes.py.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    spec = importlib.util.spec_from_file_location(
        "inner_guidance", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["inner_guidance"] = importlib.util.module_from_spec(spec)
