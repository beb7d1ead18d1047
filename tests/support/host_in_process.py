"""Brings the host into this process, on the CPU, and runs the pack's entry point in it, once."""

import importlib
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from inner_guidance.tools.in_process import import_host
from inner_guidance.tools.setup_host import SetupError

try:
    import_host("cpu")
except SetupError as error:
    pytest.exit(str(error), returncode=1)

pack = sys.modules["inner_guidance"]
pack.__spec__.loader.exec_module(pack)

model_management = importlib.import_module("comfy.model_management")


@pytest.fixture(autouse=True)
def inference_mode() -> Iterator[None]:
    """Every test runs as the host's executor runs a node; without it, gradient faults would stay hidden."""
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def unloaded() -> Iterator[None]:
    """Leaves no model loaded: the host would complain in the next test that this one's patcher is gone."""
    yield
    model_management.unload_all_models()


@pytest.fixture
def cancel() -> Iterator[Callable[[], None]]:
    """Presses Cancel. It must have been heard by the end, or it would end the next test."""
    yield model_management.interrupt_current_processing
    heard = not model_management.processing_interrupted()
    model_management.interrupt_current_processing(False)
    assert heard
