"""Runs the in-process tests on a ComfyUI between the oldest and the newest, which it fetches first.

python -m tools.older_hosts 0.27.0    the tests of tests/host that are not slow: make hosts HOST=0.27.0
python -m tools.older_hosts           a few files of them, on a host that the commit chooses: CI
"""

import os
import subprocess
import sys

from .setup_host import HOSTS_BETWEEN, ROOT, SetupError, fetch_host

# Each formula, the gradients, records, what a guider, a batch and a transformer change, and the node schemas.
FEW = (
    "test_batches",
    "test_dag_formula",
    "test_dag_transformers",
    "test_depth_estimate",
    "test_depth_estimate_checks",
    "test_depth_estimate_of_records",
    "test_entry_point",
    "test_gradient_of_a_pass",
    "test_guiders",
    "test_node_interface",
    "test_record_attention",
    "test_record_features",
    "test_sag_formula",
    "test_sag_transformers",
)
# Of models that only the newest host has all of.
NEWEST_ONLY = (
    "test_gradient_families",
    "test_gradient_plain_kernels",
    "test_model_families",
    "test_model_sequences",
    "test_random_checkpoints",
    "test_words_in_contexts",
)


def host_of_commit() -> str:
    """A host by the hash of the commit: one commit is always tested on the same. Raises SetupError."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        head = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(
            "There is no commit to choose a ComfyUI by, in a checkout without git: name one, as in "
            f"`make hosts HOST={max(HOSTS_BETWEEN)}`."
        ) from error
    return sorted(HOSTS_BETWEEN)[int(head, 16) % len(HOSTS_BETWEEN)]


def run_tests(version: str, files: list[str]) -> int:
    """Run the tests of these files of tests/host, of all without any; the exit code of pytest.

    Raises SetupError when there is no such host, or it cannot be fetched.
    """
    if version not in HOSTS_BETWEEN:
        raise SetupError(f"There is no ComfyUI {version} here: choose {', '.join(HOSTS_BETWEEN)}.")
    archive = HOSTS_BETWEEN[version]
    fetch_host(archive, ROOT)
    tests = [f"tests/host/{name}.py" for name in files]
    tests = tests or ["tests/host", *(f"--ignore=tests/host/{name}.py" for name in NEWEST_ONLY)]
    workers = ["-n", os.environ.get("WORKERS", "2"), "--dist", "loadgroup"]
    print(f"The in-process tests on ComfyUI {version}:", flush=True)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *workers, *tests],
        cwd=ROOT,
        env=os.environ | {"COMFYUI_PATH": str(ROOT / archive.folder)},
        check=False,
    ).returncode


if __name__ == "__main__":
    try:
        sys.exit(run_tests(sys.argv[1], []) if sys.argv[1:] else run_tests(host_of_commit(), list(FEW)))
    except SetupError as error:
        sys.exit(f"make hosts: {error}")
