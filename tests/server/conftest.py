"""What the real server says of the pack, and what the demo workflows draw in it."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inner_guidance.tools.host_server import HostServer, Prompt
from inner_guidance.tools.template_runs import shortened, template

# What makes a demo cheaper, by its name; `make page` runs them as they are.
# A prior guides less after few steps, so its scale is higher.
CHEAPER = {
    "09 Demo - Train a depth head": {"InnerTrainDepthHead": {"steps": 50}},
    "10 Demo - Train a depth prior": {
        "InnerTrainDepthPrior": {"steps": 75},
        "InnerDepthAwareGuidance": {"prior_scale": 3.0},
    },
}


@pytest.fixture(scope="session")
def object_info(server: HostServer) -> dict[str, Any]:
    """What the server tells the frontend about every node."""
    return server.object_info()


@pytest.fixture(scope="session")
def workflow() -> Callable[[str], Prompt]:
    """A workflow as it is drawn here, by its name, in the API's format."""
    return lambda name: shortened(template(name), CHEAPER.get(name, {}))


@pytest.fixture(scope="session")
def drawn(server: HostServer, workflow: Callable[[str], Prompt]) -> Callable[[str], dict[str, list[bytes]]]:
    """What a workflow that needs no download draws: image files by node id. Each runs once for all tests."""

    @functools.cache
    def run(name: str) -> dict[str, list[bytes]]:
        return server.run(workflow(name))

    return run


@pytest.fixture(scope="session")
def node_ids(root: Path) -> list[str]:
    """The ids of the pack's nodes, read from the source as ComfyUI-Manager reads them: as literals."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (root / "nodes").glob("*.py"))
    return re.findall(r'node_id="(\w+)"', sources)
