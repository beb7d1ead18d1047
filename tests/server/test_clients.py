"""Clients that others wrote run the templates: comfy-cli, comfy-api-simplified and comfy-lint."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

clients = pytest.importorskip("comfy_api_simplified", reason="the clients are missing: run `make setup`")
PROGRAMS = Path(sys.executable).parent
NAME = "04 Demo - Depth of an image"  # the one that samples nothing
NODE, PICTURE = "Depth Estimate", "Image, known depth, estimate"
# What the server of a reader has and this one has not.
LOADERS = {
    "CheckpointLoaderSimple",
    "UNETLoader",
    "CLIPLoader",
    "VAELoader",
    "InnerLoadDepthHead",
    "InnerLoadDepthPrior",
    "LoadDA3Model",
    "LoadImage",
    "LoadImageDataSetFromFolder",
}


@pytest.fixture
def run(tmp_path):
    """Run one of the clients' programs from a folder, with no settings of the user's."""

    def run(program, *arguments, folder=tmp_path):
        return subprocess.run(
            [PROGRAMS / program, *arguments],
            cwd=folder,
            env=os.environ | {"HOME": str(tmp_path), "DO_NOT_TRACK": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize("folder", ["workflows", "workflows/api"], ids=["page's format", "API's format"])
def test_comfy_cli_runs_a_template(folder, run, root, server):
    address = ("--host", "127.0.0.1", "--port", str(server.port))

    done = run("comfy", "--json", "run", "--workflow", root / folder / f"{NAME}.json", "--wait", *address)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "depth-of-images" in done.stdout


def test_comfy_api_simplified_changes_an_input_and_draws(root, server):
    client = clients.ComfyApiWrapper(f"http://127.0.0.1:{server.port}")
    workflow = clients.ComfyWorkflowWrapper(root / "workflows" / "api" / f"{NAME}.json")

    def draw():
        (png,) = client.queue_and_wait_images(workflow, PICTURE).values()
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=float)

    grey = draw()
    workflow.set_node_param(NODE, "style", "ember")
    coloured = draw()

    assert grey.shape == coloured.shape
    estimates = slice(2 * grey.shape[0] // 3, None)
    assert np.abs(grey - coloured)[estimates].mean() > 8


def test_comfy_lint_misses_only_files(run, root, server):
    twins = sorted((root / "workflows" / "api").glob("*.json"))

    done = run("comfy-lint", "--json", "--server", f"http://127.0.0.1:{server.port}", *twins)

    report = json.loads(done.stdout)
    assert len(report["files"]) == len(twins)
    for file in report["files"]:
        for fault in file["diagnostics"]:
            # It does not know the inputs that the host adds for a choice in a dynamic combo.
            dynamic = fault["rule"] == "extraneous-input" and fault["field"].startswith("output.")
            missing = fault["rule"] == "invalid-enum" and fault["class_type"] in LOADERS
            assert dynamic or missing, f"{file['path']}: {fault}"


def test_comfy_cli_accepts_the_pack_for_the_registry(run, root):
    done = run("comfy", "--skip-prompt", "--here", "node", "validate", folder=root)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "All validation checks passed" in done.stdout + done.stderr
