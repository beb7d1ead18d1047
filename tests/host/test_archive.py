"""The registry's archive, the tracked files without those of .comfyignore, is a whole pack."""

import shutil
import subprocess
import sys

import pytest

from inner_guidance.nodes import NODES

LOAD = """
import asyncio, sys
from tools.in_process import ROOT, import_host
import_host("cpu")
sys.path[:] = [entry for entry in sys.path if entry not in ("", str(ROOT))]
import nodes
folder = sys.argv.pop()
assert asyncio.run(nodes.load_custom_node(folder))
demo = nodes.NODE_CLASS_MAPPINGS["InnerLoadDemoModel"]
for family in ("UNet", "transformer"):
    assert len(demo.execute(family).result) == 7
pack = [name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("Inner")]
assert not any(str(ROOT / "host") in str(module) for module in sys.modules.values())
print(len(pack), "nodes")
"""


@pytest.fixture(scope="module")
def archived(root):
    """The names of the archive's files; git reads .comfyignore as the registry's client does."""

    def listed(*options):
        run = subprocess.run(["git", "ls-files", "-z", *options], cwd=root, capture_output=True, check=True)
        return {name for name in run.stdout.decode("utf-8").split("\0") if name}

    return listed() - listed("--cached", "--ignored", "--exclude-from=.comfyignore")


def test_the_archive_has_what_an_artist_needs_and_no_more(archived, root):
    folders = {name.split("/")[0] for name in archived if "/" in name}

    assert not folders & {"tests", "benchmarks", "experiments", "tools", ".github", ".ci"}
    assert {"README.md", "LICENSE", "pyproject.toml", "__init__.py"} <= archived
    assert {"web", "locales", "workflows", "subgraphs", "nodes", "demo", "docs"} <= folders
    assert sum((root / name).stat().st_size for name in archived) < 40e6


@pytest.mark.slow
def test_the_host_loads_the_archive(archived, root, tmp_path):
    pack = tmp_path / "custom_nodes" / "inner-guidance"
    for name in archived:
        target = pack / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, target)

    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(pack)], cwd=root, capture_output=True, text=True, check=False
    )

    assert run.returncode == 0, run.stderr[-4000:]
    assert f"{len(NODES)} nodes" in run.stdout
