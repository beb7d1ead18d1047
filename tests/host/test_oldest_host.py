"""The tests marked `oldest_host`, on ComfyUI 0.9.2, in a process of their own: a process has one host.

Without the slow ones, as on the hosts between it and the newest: of each kind of them, some are not slow.

The tests of the demo model are not among them: the tree that `make setup` fetches lacks `comfy.sd`.
"""

import os
import subprocess
import sys

import pytest

MARK = "\npytestmark = pytest.mark.oldest_host\n"


@pytest.mark.slow
def test_the_pack_on_comfyui_0_9_2(oldest_host, root):
    # By name: this host cannot import the other files.
    files = sorted((root / "tests" / "host").glob("test_*.py"))
    marked = [path for path in files if MARK in path.read_text(encoding="utf-8")]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow", "--tb=short"]

    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *marked],
        cwd=root,
        env=os.environ | {"COMFYUI_PATH": str(oldest_host)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stdout[-8000:]
    assert " passed" in result.stdout.splitlines()[-1]
