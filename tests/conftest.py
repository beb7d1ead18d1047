"""Makes the checkout importable as `inner_guidance`, the way the host loads a pack from its folder.

The package is registered here but its `__init__.py` is not run: that needs the host, and tests/unit must not.
tests/host/conftest.py runs it. So a unit test may import `inner_guidance.guidance.self_attention`, and a test
that imports `inner_guidance.nodes` belongs in tests/host.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.in_process import ROOT, register_pack

register_pack()

setup_host = importlib.import_module("inner_guidance.tools.setup_host")
host_server = importlib.import_module("inner_guidance.tools.host_server")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def host() -> Path:
    """The ComfyUI that everything is tested on: COMFYUI_PATH, or the one that `make setup` fetched."""
    try:
        return setup_host.host_folder()
    except setup_host.SetupError as error:
        pytest.exit(str(error), returncode=1)


@pytest.fixture(scope="session")
def oldest_host() -> Path:
    """ComfyUI 0.9.2, without its server and `comfy.sd`: the oldest that the pack promises to load on."""
    folder = ROOT / setup_host.OLDEST_HOST.folder
    if not setup_host.is_stamped(folder, setup_host.OLDEST_HOST.sha256):
        pytest.exit(f"There is no ComfyUI 0.9.2 in {folder}: run `make setup`.", returncode=1)
    return folder


@pytest.fixture(scope="session")
def server(host: Path, root: Path) -> Iterator["host_server.HostServer"]:
    """The host with the pack in it, on the CPU."""
    with host_server.HostServer(host, root, log=root / ".cache" / "test-server.log") as running:
        yield running
