"""Makes the checkout importable as `inner_guidance`, the way the host loads a pack from its folder.

The package is registered here but its `__init__.py` is not run: that needs the host, and tests/unit must not.
tests/host/conftest.py runs it. So a unit test may import `inner_guidance.guidance.self_attention`, and a test
that imports `inner_guidance.nodes` belongs in tests/host.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

spec = importlib.util.spec_from_file_location(
    "inner_guidance", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
)
sys.modules["inner_guidance"] = importlib.util.module_from_spec(spec)


def host_tree(folder: Path) -> Path:
    """`folder` when it holds a ComfyUI; otherwise the run ends here, with what to do."""
    if not (folder / "comfyui_version.py").is_file():
        pytest.exit(f"There is no ComfyUI in {folder}: run `make setup`, or set COMFYUI_PATH.", returncode=1)
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def host() -> Path:
    """The ComfyUI that everything is tested on: COMFYUI_PATH, or the one that `make setup` fetched."""
    return host_tree(Path(os.environ.get("COMFYUI_PATH") or ROOT / ".comfyui"))


@pytest.fixture(scope="session")
def oldest_host() -> Path:
    """ComfyUI 0.9.2, without its server and `comfy.sd`: the oldest that the pack promises to load on."""
    return host_tree(ROOT / ".comfyui-0.9.2")
