"""The user cancels Train Depth Head: the best head so far is kept, whenever that is."""

import comfy.model_management
import comfy.utils
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy.patcher_extension import WrappersMP

from inner_guidance.depth_head.head_files import load_depth_head, save_depth_head
from inner_guidance.host.depth import head_training, training_watch
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.depth_head_runs import train, weights

pytestmark = pytest.mark.oldest_host


def cancelling(model, cancel, at_pass):
    """A model in whose training pass of this number, from 1, the user cancels; its own operations raise."""
    passes = [-1]  # one on the first image comes before the training

    def counted(executor, *args, **kwargs):
        passes[0] += 1
        if passes[0] == at_pass:
            cancel()
            comfy.model_management.throw_exception_if_processing_interrupted()
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper(WrappersMP.APPLY_MODEL, counted)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at_pass", "steps", "best", "measured"),
    [
        (2, 1, 1, True),  # in the pass of the second step
        (3, 2, 2, True),  # in the first of four passes that judge held-out images, after two steps
        (6, 2, 2, True),
        (7, 2, 2, True),
        (20 + 9 * 4 + 2, 20, None, True),  # in the tenth and last check
        (20 + 10 * 4 + 1, 20, None, False),  # in the measurement after the last step
        (20 + 10 * 4 + 6, 20, None, False),
    ],
)
def test_an_interruption_inside_a_pass_keeps_the_head(tmp_path, cancel, at_pass, steps, best, measured):
    model = cancelling(tiny.patcher("small"), cancel, at_pass)
    head, report = train(model, steps=20)

    assert head.head.training["steps"] == steps
    assert best in (None, head.head.training["kept_after"])
    assert all(value.isfinite().all() for value in weights(head).values())
    assert bool(head.head.training["abs_rel"]) == measured
    assert report.isfinite().all()
    save_depth_head(tmp_path / "kept.safetensors", head.head)
    kept = load_depth_head(tmp_path / "kept.safetensors").network.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in weights(head).items())


@pytest.mark.parametrize(("at", "measured"), [(1 + 2, True), (2 * 5 + 1, False), (2 * 5 + 6, False)])
def test_an_interruption_of_a_latent_head_keeps_the_head(cancel, monkeypatch, at, measured):
    """Two steps and four readings to judge each, then eight to measure the head."""
    read, stand_in = [], head_training.stand_in

    def pressed(*args):
        read.append(1)
        if len(read) == at:
            cancel()
        return stand_in(*args)

    monkeypatch.setattr(head_training, "stand_in", pressed)
    head, report = train(architecture="latent", steps=2)

    assert bool(head.head.training["abs_rel"]) == measured
    assert report.isfinite().all()
    comfy.model_management.throw_exception_if_processing_interrupted()  # the next node would end the graph


def test_an_interruption_keeps_the_same_head_wherever_it_comes(cancel, monkeypatch):
    """Before the first check the last state is the best: after three steps it is one and the same."""
    inside, _ = train(cancelling(tiny.patcher("small"), cancel, 4), steps=100)
    interrupt_after(monkeypatch, cancel, 3)
    between, _ = train(steps=100)

    assert inside.head.training["steps"] == between.head.training["steps"] == 3
    assert all(torch.equal(value, weights(between)[name]) for name, value in weights(inside).items())


def interrupt_after(monkeypatch, cancel, steps):
    """The user presses Cancel when so many steps are done."""
    update = comfy.utils.ProgressBar.update_absolute

    def pressed(self, value, total=None, preview=None):
        update(self, value, total, preview)
        if value == 6 + steps:
            cancel()

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", pressed)


def test_an_interruption_by_the_progress_bar_keeps_the_head(cancel, monkeypatch):
    """The server's hook raises while the progress is shown."""

    def hook(value, *args, **kwargs):
        if value == 6 + 3:
            cancel()
        comfy.model_management.throw_exception_if_processing_interrupted()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    monkeypatch.setattr(training_watch, "PREVIEW_SECONDS", 0.0)  # every preview is shown at once
    head, _ = train(steps=100)
    assert head.head.training["steps"] == 3


def test_an_interruption_before_the_first_step_ends_the_graph(cancel, monkeypatch):
    with pytest.raises(InterruptProcessingException):
        train(cancelling(tiny.patcher("small"), cancel, 1), steps=1000)
    interrupt_after(monkeypatch, cancel, 0)
    with pytest.raises(InterruptProcessingException):
        train(steps=1000)


def test_the_model_is_as_before_after_an_interruption(cancel):
    model = tiny.patcher("small")
    before = tiny.sample(model)
    train(cancelling(model, cancel, 3), steps=100)
    assert torch.equal(tiny.sample(model), before)
