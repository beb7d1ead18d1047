"""What `make gpu-check` does with a device, done with the CPU: the same code in the same server."""

import pytest

from inner_guidance.tests.gpu import checks
from inner_guidance.tests.gpu.checkpoint import Subject, drawing
from inner_guidance.tests.gpu.launches import CPU_LAUNCHES
from inner_guidance.tests.gpu.prompts import GUIDED, PROMPTS, RECORDED, with_seed
from inner_guidance.tests.support.node_defaults import with_defaults
from inner_guidance.tools.template_runs import run_with_twins, shortened

TWO_STEPS = {"KSampler": {"steps": 2}}
SUBJECT = Subject("checkpoint.safetensors", "depth_anything.safetensors", side=512, steps=2)


@pytest.mark.parametrize("name", [GUIDED, RECORDED, f"{GUIDED}, transformer"])
def test_a_workflow_is_sound_and_like_itself(name, server):
    prompt = shortened(PROMPTS[name], TWO_STEPS)
    reference = run_with_twins(server, prompt)
    reference.require_sound()

    told = checks.like_the_cpu(server, CPU_LAUNCHES[0], prompt, reference)

    assert told.startswith("float32: plain 0")
    assert "pictures 0" in told


def test_another_result_is_told(server):
    prompt = shortened(PROMPTS[GUIDED], TWO_STEPS)
    reference = run_with_twins(server, with_seed(prompt, 1))

    with pytest.raises(checks.CheckError, match=r"float32: plain .* beyond the tolerance: plain, guidance"):
        checks.like_the_cpu(server, CPU_LAUNCHES[0], prompt, reference)


def test_two_runs_and_the_memory_are_compared(server, monkeypatch):
    prompt = shortened(PROMPTS[GUIDED], TWO_STEPS)
    held = iter([5, 7, 9])
    monkeypatch.setattr(checks, "held_bytes", lambda device: next(held))

    assert checks.twice_the_same(server, prompt) == "2 latents bit for bit"
    assert checks.memory_growth(server, [prompt] * 3, settled=2) == 2


def test_runs_that_differ_are_told(server, monkeypatch):
    prompt = shortened(PROMPTS[GUIDED], TWO_STEPS)
    runs = iter([run_with_twins(server, with_seed(prompt, seed)) for seed in (1, 2)])
    monkeypatch.setattr(checks, "run_with_twins", lambda *_: next(runs))

    with pytest.raises(checks.CheckError, match="2 of 2 latents differ"):
        checks.twice_the_same(server, prompt)


@pytest.mark.parametrize("row", SUBJECT.rows)
def test_what_is_drawn_on_a_checkpoint_lacks_only_files(row, server):
    prompt = drawing(SUBJECT, row, seed=1, head="head.safetensors", target="target.png")

    faults = [
        error
        for node in server.queue(with_defaults(prompt, server.object_info()), "t")["node_errors"].values()
        for error in node["errors"]
    ]

    assert faults
    assert {fault["type"] for fault in faults} <= {"value_not_in_list", "custom_validation_failed"}
    for fault in faults:
        missing = str(fault["extra_info"].get("received_value", fault["details"]))
        assert missing.endswith((".safetensors", "target.png")), fault


def test_device_memory_is_what_pytorch_holds():
    assert checks.held_bytes({"torch_vram_total": 10, "torch_vram_free": 4}) == 6
