"""The host in this process, and what the pack logs in it."""

import logging

import pytest

from inner_guidance.tests.support.host_in_process import cancel, inference_mode, unloaded

__all__ = ["cancel", "inference_mode", "unloaded"]


@pytest.fixture
def said(caplog):
    """What the pack has logged so far."""
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage() for r in caplog.records if "-A" in r.getMessage()]
