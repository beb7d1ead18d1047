"""Makes the checkout importable as `inner_guidance`, the way the host loads a pack from its folder.

The package is registered here but its `__init__.py` is not run: that needs the host, and tests/unit must not.
tests/host/conftest.py runs it. So a unit test may import `inner_guidance.guidance.self_attention`, and a test
that imports `inner_guidance.nodes` belongs in tests/host.
"""

import gc
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tools.in_process import ROOT, register_pack

# What is imported lives to the end. Collections that look through all of it take 0.3 s each: there are none
# while it is imported, and pytest_collection_finish takes it out of those that follow.
gc.disable()

# Tiny models gain nothing from a second thread, here and in the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

register_pack()

setup_host = importlib.import_module("inner_guidance.tools.setup_host")
host_server = importlib.import_module("inner_guidance.tools.host_server")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers share the tests (`pytest -n`): one has the server and the page, and the longest start first."""
    for item in items:
        if "server" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("server"))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Everything is imported: the garbage collector need not look at it again."""
    gc.freeze()
    gc.enable()


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
