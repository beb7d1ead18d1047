"""The guidance on ComfyUI 0.9.2, in a process of its own: a process has one host.

The tests of the demo model are not among them: the tree that `make setup` fetches is without `comfy.sd`.
"""

import os
import subprocess
import sys

import pytest

FILES = (
    "test_attention_maps_node.py",
    "test_blocks.py",
    "test_dag_formula.py",
    "test_dag_gradients_taken.py",
    "test_dag_runs.py",
    "test_dag_safeguards.py",
    "test_depth_estimate.py",
    "test_depth_head_files.py",
    "test_depth_prior.py",
    "test_feature_maps_and_spectrum_nodes.py",
    "test_feature_tap.py",
    "test_frozen_unet.py",
    "test_gradient_kernels_and_patches.py",
    "test_gradient_of_a_pass.py",
    "test_gradient_weights.py",
    "test_prompt_words.py",
    "test_record_attention.py",
    "test_record_attention_conditions.py",
    "test_record_attention_runs.py",
    "test_record_depth.py",
    "test_record_features.py",
    "test_sag_changed_passes.py",
    "test_sag_cost.py",
    "test_sag_faults_formula.py",
    "test_sag_faults_runs.py",
    "test_sag_formula.py",
    "test_sag_geometry.py",
    "test_sag_other_guidances.py",
    "test_sag_state.py",
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
