"""Models of real size with random weights on this device: the templates, and what guidance costs."""

import subprocess
import sys

import pytest

from inner_guidance.tests.gpu.checks import CheckError
from inner_guidance.tests.gpu.launches import TRIED, Launch

pytestmark = pytest.mark.skipif(TRIED, reason="real sizes on the CPU: make full-size, make bench")
LAUNCHES = (
    Launch("as ComfyUI chooses"),
    Launch("novram, async offload", ("--disable-dynamic-vram", "--novram", "--async-offload")),
    Launch("float8 weights", ("--fp8_e4m3fn-unet",)),
)
MODELS = ("sd15", "sdxl", "sdxl_2048", "flux", "z_image")
MEASURED = {f"guidance, {model}": ("benchmarks.speed", "--model", model) for model in MODELS} | {
    "training a depth head": ("benchmarks.training_cost", "--out", ".cache/gpu-check/training_cost.md")
}


@pytest.fixture
def output_of(root, report):
    """What a module prints, as a section of the report. Raises CheckError if it fails."""

    def run(section, *command):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, check=False
        )
        if done.stdout:
            report.sections[section] = done.stdout
        if done.returncode != 0:
            raise CheckError(done.stderr.strip().splitlines()[-1])
        return done.stdout.strip().splitlines()[-1]

    return run


@pytest.fixture(scope="session")
def checkpoints(root):
    """The random checkpoints that the templates load."""
    models = root / ".cache" / "full-size" / "models"
    command = [sys.executable, "-m", "tools.run", "benchmarks.random_checkpoints", str(models)]
    subprocess.run(command, cwd=root, check=True)


@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda launch: launch.name)
def test_templates_run(launch, checkpoints, checked, output_of):
    section = f"Templates on Stable Diffusion 1.5, {launch.name}"
    options = f"--options={' '.join(launch.options)}"
    checked(launch.name, "SD 1.5, all templates", output_of, section, "tools.full_size", options)


@pytest.mark.parametrize("what", MEASURED)
def test_cost_is_measured(what, checked, output_of):
    section = f"What it costs: {what}"

    def measured():
        output_of(section, "tools.run", "--device", "gpu", *MEASURED[what])
        return f"in the section {section}"

    checked("time and memory", what, measured)
