"""The demo transformer in training: a denoiser of the host's class that learns from its loss."""

import comfy.model_management
import pytest
import torch

from inner_guidance.demo import model as demo
from inner_guidance.demo.denoisers import TextToFlow
from inner_guidance.demo.text import CONTEXT_LENGTH


@pytest.fixture
def in_training(monkeypatch):
    """As in a process that trains."""
    monkeypatch.setattr(comfy.model_management, "in_training", True)
    with torch.inference_mode(False), torch.enable_grad():
        yield


def test_an_untrained_model_predicts_nothing_and_learns_from_its_loss(in_training):
    torch.manual_seed(0)
    model = TextToFlow(demo.read_weights(demo.WEIGHTS / demo.TEXT_FILE))
    x0, tokens = torch.full((4, 4, 8, 8), 2.0), torch.ones(4, CONTEXT_LENGTH, dtype=torch.long)

    assert model.loss(x0, tokens).item() == pytest.approx(1 + 2.0**2, rel=0.1)  # the mean of (e - x0)^2

    optimiser = torch.optim.SGD(model.transformer.parameters(), 0.05)
    for _ in range(30):
        optimiser.zero_grad()
        model.loss(x0, tokens).backward()
        optimiser.step()
    assert model.loss(x0, tokens).item() < 2
    assert all(parameter.grad is None for parameter in model.text.parameters())
