"""The archive that comfy-cli packs for the registry is a whole pack: ComfyUI runs with nothing else of it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from inner_guidance.tools.host_server import HostServer
from inner_guidance.tools.template_runs import shortened, template

pytest.importorskip("comfy_cli", reason="the clients are missing: run `make setup`")
COMFY = Path(sys.executable).with_name("comfy")
NAME = "04 Demo - Depth of an image"  # the one that samples nothing
ONE_SCENE = {"InnerDemoScenes": {"count": 1}, "InnerDepthEstimate": {"ensemble": 1}}


@pytest.fixture(scope="module")
def archive(root, tmp_path_factory):
    """The folder that the archive of the tracked files unpacks to."""
    folder = tmp_path_factory.mktemp("archive")
    checkout, unpacked = folder / "checkout", folder / "inner-guidance"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    for name in listed.stdout.decode("utf-8").split("\0")[:-1]:
        target = checkout / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, target)
    for command in (
        ["git", "init", "-q"],
        ["git", "add", "--all"],
        [COMFY, "--skip-prompt", "--here", "node", "pack"],
    ):
        subprocess.run(
            command,
            cwd=checkout,
            env=os.environ | {"HOME": str(folder), "DO_NOT_TRACK": "1"},
            capture_output=True,
            check=True,
        )
    with zipfile.ZipFile(checkout / "node.zip") as packed:
        packed.extractall(unpacked)
    return unpacked


def test_the_archive_has_what_an_artist_needs_and_no_more(archive):
    files = [path for path in archive.rglob("*") if path.is_file()]
    names = {path.name for path in archive.iterdir()}

    assert not names & {"tests", "benchmarks", "experiments", "tools", ".github", ".ci"}
    assert {"README.md", "LICENSE", "pyproject.toml", "__init__.py"} <= names
    assert {"web", "locales", "workflows", "subgraphs", "nodes", "demo", "docs"} <= names
    assert sum(path.stat().st_size for path in files) < 40e6


@pytest.mark.slow
def test_comfyui_runs_with_only_the_archive(archive, node_ids, host, tmp_path):
    with HostServer(host, archive, log=tmp_path / "server.log") as server:
        loaded = {
            name
            for name, node in server.object_info().items()
            if node["python_module"] == "custom_nodes.inner-guidance"
        }
        page = server.get("/extensions/inner-guidance/docs/InnerDepthEstimate.md")
        picture = server.get("/extensions/inner-guidance/docs/InnerDepthEstimate.jpg")
        templates = server.get("/workflow_templates")
        drawn = []
        for family in ("UNet", "transformer"):
            prompt = shortened(template(NAME), ONE_SCENE)
            (model,) = [node for node in prompt.values() if node["class_type"] == "InnerLoadDemoModel"]
            model["inputs"]["family"] = family
            drawn.append(server.run(prompt))

    assert loaded == set(node_ids)
    assert page.startswith(b"# Depth Estimate")
    assert picture.startswith(b"\xff\xd8")
    assert NAME.encode() in templates
    assert all(drawn)
    assert drawn[0] != drawn[1]
