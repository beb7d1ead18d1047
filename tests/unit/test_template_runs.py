"""A workflow with a plain twin of each sampler: what the twins are, and what their latents must be."""

import pytest
import torch
from PIL import Image

from inner_guidance.tools.template_runs import TemplateRun, TemplateRunError, Twins, template, with_twins

LATENT = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
RAMP = Image.linear_gradient("L")


def run_of(sampler, plain, guided, picture=RAMP):
    return TemplateRun({"a": sampler, "b": plain}, {"9": [picture]}, [Twins("a", "b", guided)])


def test_a_guided_sampler_gets_a_twin_on_the_loaders_model():
    prompt, twins = with_twins(template("15 SAG + hires fix"))

    # The second sampler continues the first one's latent.
    (pair,) = twins
    assert pair.guided
    sampler, plain = (prompt[prompt[node]["inputs"]["samples"][0]]["inputs"] for node in pair[:2])
    assert prompt[sampler["model"][0]]["class_type"] == "InnerSelfAttentionGuidance"
    assert prompt[plain["model"][0]]["class_type"] == "CheckpointLoaderSimple"
    assert {k: v for k, v in plain.items() if k != "model"} == {
        k: v for k, v in sampler.items() if k != "model"
    }


def test_recording_is_no_guidance():
    _, (pair,) = with_twins(template("16 See what SD 1.5 sees"))

    assert not pair.guided


def test_the_template_is_left_as_it_was():
    prompt = template("21 DAG + SAG")

    with_twins(prompt)

    assert prompt == template("21 DAG + SAG")


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (run_of(LATENT, LATENT.clone(), guided=True), "guidance changes a by 0"),
        (run_of(LATENT * (1 + 1e-6), LATENT, guided=False), "recording changes a"),
        (run_of(LATENT * torch.nan, LATENT, guided=True), "a is not finite"),
        (run_of(2 * LATENT, LATENT, guided=True, picture=Image.new("RGB", (8, 8))), "a single colour"),
    ],
)
def test_what_is_not_sound_is_said(run, said):
    with pytest.raises(TemplateRunError, match=said):
        run.require_sound()


def test_sound_runs_pass():
    run_of(LATENT, LATENT.clone(), guided=False).require_sound()
    run = run_of(1.5 * LATENT, LATENT, guided=True)

    run.require_sound()
    assert run.changes == pytest.approx([0.5])
