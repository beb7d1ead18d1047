"""Brings the host into this process, on the CPU, and runs the pack's entry point in it."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".comfyui")

if not (HOST / "comfyui_version.py").is_file():
    pytest.exit(f"There is no ComfyUI in {HOST}: run `make setup`, or set COMFYUI_PATH.", returncode=1)

sys.path.insert(0, str(HOST))  # before everything: this checkout has a folder `nodes`, the host a nodes.py

importlib.import_module("comfy.cli_args").args.cpu = True  # read when comfy.model_management is imported
importlib.import_module("inner_guidance.tools.torchvision_shim").import_torchvision()

pack = sys.modules["inner_guidance"]
pack.__spec__.loader.exec_module(pack)

import torch  # noqa: E402


@pytest.fixture(autouse=True)
def inference_mode() -> Iterator[None]:
    """Every test runs as the host's executor runs a node; without it, gradient faults would stay hidden."""
    with torch.inference_mode():
        yield
