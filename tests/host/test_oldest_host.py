"""The guidance on ComfyUI 0.9.2, in a process of its own: a process has one host.

The tests of the demo model are not among them: the tree that `make setup` fetches is without `comfy.sd`.
"""

import os
import subprocess
import sys

import pytest

FILES = (
    "test_blocks.py",
    "test_dag_formula.py",
    "test_dag_runs.py",
    "test_depth_estimate.py",
    "test_depth_head_files.py",
    "test_depth_prior.py",
    "test_feature_tap.py",
    "test_frozen_unet.py",
    "test_gradients.py",
    "test_map_nodes.py",
    "test_prompt_words.py",
    "test_record_attention.py",
    "test_record_depth.py",
    "test_record_features.py",
    "test_sag_chaining.py",
    "test_sag_faults.py",
    "test_sag_formula.py",
    "test_sag_geometry.py",
    "test_sag_runs.py",
    "test_sag_transformers.py",
    "test_train_depth_head.py",
)


@pytest.mark.slow
def test_the_guidance_on_comfyui_0_9_2(oldest_host, root):
    tests = [f"tests/host/{name}" for name in FILES]

    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *tests],
        cwd=root,
        env=os.environ | {"COMFYUI_PATH": str(oldest_host)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stdout[-8000:]
    assert " passed" in result.stdout.splitlines()[-1]
