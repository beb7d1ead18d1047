"""`make gpu-check`: how far a device is from the CPU, what is too far, and the report."""

import pytest
import torch
from PIL import Image

from inner_guidance.tests.gpu.checks import CheckError
from inner_guidance.tests.gpu.comparison import Deviation, deviation
from inner_guidance.tests.gpu.figures import figures_table
from inner_guidance.tests.gpu.launches import precision
from inner_guidance.tests.gpu.prompts import compiled
from inner_guidance.tests.gpu.report import FAILED, PASSED, SKIPPED, UNKNOWN, Report, Row, commit_of
from inner_guidance.tests.gpu.test_checkpoint import linked
from inner_guidance.tests.gpu.tolerances import TOLERANCES, Tolerance
from inner_guidance.tools.template_runs import TemplateRun, Twins

STATS = {
    "system": {
        "comfyui_version": "0.30.0",
        "pytorch_version": "2.13",
        "python_version": "3.11 (x)",
        "os": "linux",
    },
    "devices": [{"name": "cuda:0 NVIDIA H200", "vram_total": 139 * 2**30}],
}


def latent(seed):
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def run_of(guided, recorded, plain, grey):
    return TemplateRun(
        {"guided": guided, "recorded": recorded, "plain": plain},
        {"9": [Image.new("L", (8, 8), grey)]},
        [Twins("guided", "plain", guided=True), Twins("recorded", "plain", guided=False)],
    )


def test_the_deviation_of_guidance_is_that_of_what_it_adds():
    plain, shift = latent(0), 0.1 * latent(1)
    reference = run_of(plain + shift, plain, plain, 100)

    far = deviation(run_of(1.02 * plain + 1.5 * shift, 1.02 * plain, 1.02 * plain, 151), reference)

    assert far.plain == pytest.approx(0.02, rel=1e-3)
    assert far.guidance == pytest.approx(0.5, rel=1e-3)
    assert far.picture == pytest.approx(0.2)
    assert deviation(reference, reference) == Deviation(0, 0, 0)


def test_guidance_that_does_nothing_is_beyond_every_tolerance():
    plain = latent(0)
    reference = run_of(plain + 0.1 * latent(1), plain, plain, 100)

    far = deviation(run_of(plain, plain, plain, 100), reference)

    assert all(far.exceeds(tolerance) == ["guidance"] for tolerance in TOLERANCES.values())


def test_what_is_no_number_is_too_far_and_what_is_missing_is_not():
    assert Deviation(float("nan"), None, 0.5).exceeds(Tolerance(1, 1, 0.1)) == ["plain", "picture"]
    assert str(Deviation(0.012, None, 0.5)) == "plain 0.012, pictures 0.5"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("torch.float16, manual cast: None", "float16"),
        ("torch.float16, manual cast: torch.bfloat16", "bfloat16"),
        ("torch.bfloat16, manual cast: torch.float32", "bfloat16"),
        ("torch.float8_e4m3fn, manual cast: torch.float16", "float16"),
        ("torch.float32, manual cast: None", "float32"),
    ],
)
def test_the_precision_is_that_of_the_last_model_in_the_log(told, expected):
    log = (
        f"[INFO] model weight dtype torch.float64, manual cast: None\n[INFO] model weight dtype {told}\nmore"
    )

    assert precision(log) == expected
    assert expected in TOLERANCES


def test_compiling_puts_one_node_behind_the_loader():
    prompt = {
        "1": {"class_type": "InnerLoadDemoModel", "inputs": {}},
        "2": {"class_type": "InnerSelfAttentionGuidance", "inputs": {"model": ["1", 0], "scale": 1.0}},
        "3": {"class_type": "KSampler", "inputs": {"model": ["2", 0], "positive": ["1", 1]}},
    }

    changed = compiled(prompt)

    assert changed["compiled"]["inputs"]["model"] == ["1", 0]
    assert changed["2"]["inputs"] == {"model": ["compiled", 0], "scale": 1.0}
    assert changed["3"] == prompt["3"]
    assert prompt["2"]["inputs"]["model"] == ["1", 0]


def test_the_report_can_be_pasted():
    report = Report(
        [
            Row("float16", "SAG", PASSED, "float16: plain 0.01"),
            Row("float16", "DAG", FAILED, "failed:\nRuntimeError | no kernel"),
            Row("Sage attention", "all", SKIPPED, "sageattention is not installed"),
        ],
        {"Speed": "| a |\n|---|\n| 1 |\n"},
    )

    lines = report.markdown(STATS, "v0.2.0-3-gabc").splitlines()

    assert lines[0] == "# Inner Guidance on cuda:0 NVIDIA H200"
    assert lines[2].startswith("1 pass, 1 fail, 1 not run. Inner Guidance v0.2.0-3-gabc, ComfyUI 0.30.0,")
    assert lines[2].endswith("linux, 139 GiB.")
    assert lines[6:9] == [
        "| float16 | SAG | pass | float16: plain 0.01 |",
        "| float16 | DAG | **FAIL** | failed: RuntimeError \\| no kernel |",
        "| Sage attention | all | not run | sageattention is not installed |",
    ]
    assert lines[10:] == ["## Speed", "", "| a |", "|---|", "| 1 |"]


def test_figures_are_of_change_agreement_and_target():
    ramp = Image.linear_gradient("L")
    grey = Image.new("RGB", (256, 256), (100, 100, 100))
    lighter = Image.new("RGB", (256, 256), (151, 151, 151))
    plain = {"picture": grey, "depth": ramp, "read": ramp}
    guided = {"picture": lighter, "depth": ramp.rotate(180), "read": ramp}

    lines = figures_table({"without": [plain, plain], "DAG": [guided, guided]}).splitlines()

    assert lines[2:] == ["| without | 0.000 | 1.00 | 1.00 |", "| DAG | 0.200 | -1.00 | -1.00 |"]


def test_figures_without_a_depth_model():
    shown = [{"picture": Image.new("RGB", (8, 8))}] * 2

    assert figures_table({"without": shown, "SAG": shown}).splitlines()[3] == "| SAG | 0.000 |  |  |"


def test_a_report_needs_no_git(root, tmp_path, monkeypatch):
    """The checks have run for half an hour when it is written."""
    assert commit_of(tmp_path) == UNKNOWN
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(root) == UNKNOWN


def test_model_files_of_the_user(tmp_path, monkeypatch):
    """Downloads may be links to files whose names are hashes."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "d34db33f").write_bytes(b"weights")
    (tmp_path / "home" / "my model.safetensors").symlink_to("d34db33f")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    name = linked(tmp_path, "checkpoints", "~/my model.safetensors")

    assert name == "my model.safetensors"
    assert (tmp_path / "models" / "checkpoints" / name).read_bytes() == b"weights"
    with pytest.raises(CheckError, match=r"there is no file /.*gone\.safetensors: write the path"):
        linked(tmp_path, "checkpoints", "gone.safetensors")
