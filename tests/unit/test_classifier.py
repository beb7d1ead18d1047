"""Classifier guidance against exact posteriors and the paper's mean; the head, its training and its file."""

import math

import pytest
import torch

from inner_guidance.classifier_head.classifier_report import draw_classifier_report
from inner_guidance.classifier_head.head import ClassifierHead
from inner_guidance.classifier_head.head_files import load_classifier_head, save_classifier_head
from inner_guidance.classifier_head.network import ClassifierNetwork
from inner_guidance.classifier_head.training import (
    CHECKED_TIMES,
    ClassifierTrainingSettings,
    split,
    train_classifier,
)
from inner_guidance.guidance.classifier import classifier_shift, log_probability

TAPS = {"m0": 4, "o1": 3}
MEANS, VARIANCE = torch.tensor([-1.0, 2.0], dtype=torch.float64), 0.25


def posteriors(x, a, c):
    """For x = a x0 + c n and two classes x0 ~ N(MEANS[y], VARIANCE): E[x0 | x, y] and log p(y | x)."""
    spread = a**2 * VARIANCE + c**2
    means = MEANS + a * VARIANCE / spread * (x[:, None] - a * MEANS)
    evidence = -((x[:, None] - a * MEANS) ** 2) / (2 * spread)
    return means, evidence - evidence.logsumexp(dim=1, keepdim=True)


@pytest.mark.parametrize(("a", "c"), [(1.0, 3.0), (1.0, 0.4), (0.3, 0.7), (0.9, 0.1)])
def test_the_guided_estimate_is_that_of_the_class(a, c):
    """With s = 1 and an exact classifier, D' is the denoiser of the class; for VE (a = 1) and for flow."""
    x = torch.linspace(-4, 6, 11, dtype=torch.float64).requires_grad_()
    means, log_p = posteriors(x, a, c)
    denoised = (log_p.exp() * means).sum(dim=1)

    (gradient,) = torch.autograd.grad(log_p[:, 1].sum(), x)
    shift = classifier_shift(gradient, *torch.tensor([a, c], dtype=torch.float64), 1.0)

    torch.testing.assert_close(denoised + shift, means[:, 1], rtol=1e-9, atol=1e-9)


def test_the_shift_is_the_shift_of_the_mean_in_ddpm():
    """arXiv:2105.05233, algorithms 1 and 2; x_t = sqrt(abar) x0 + sqrt(1 - abar) e, as in DDPM."""
    abar_before, abar, s = 0.5, 0.42, 1.7
    alpha = abar / abar_before
    beta = 1 - alpha
    x_t, eps, gradient = torch.randn(3, 5, dtype=torch.float64)

    def mean(eps):
        return (x_t - beta / math.sqrt(1 - abar) * eps) / math.sqrt(alpha)

    guided = mean(eps - math.sqrt(1 - abar) * s * gradient)
    torch.testing.assert_close(guided, mean(eps) + s * beta / math.sqrt(alpha) * gradient)

    # The host's x is x_t / sqrt(abar), so its gradient is sqrt(abar) times as large.
    sigma = torch.tensor(math.sqrt((1 - abar) / abar), dtype=torch.float64)
    x0 = (x_t - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
    x0_guided = x0 + classifier_shift(math.sqrt(abar) * gradient, torch.ones_like(sigma), sigma, s)
    eps_guided = (x_t - math.sqrt(abar) * x0_guided) / math.sqrt(1 - abar)
    torch.testing.assert_close(mean(eps_guided), guided)


def test_where_x_is_noise_alone_there_is_no_shift():
    signal = torch.tensor([0.0, 0.5]).view(2, 1, 1, 1)

    shift = classifier_shift(torch.ones(2, 1, 2, 2), signal, 1 - signal, 2.0)

    assert torch.equal(shift[0], torch.zeros(1, 2, 2))
    assert torch.equal(shift[1], torch.ones(1, 2, 2))
    # the first sigma of the host's schedules with zero terminal SNR, and of those without
    for sigma, factor in ((4518.0, 0.0), (14.6, 14.6**2)):
        found = classifier_shift(torch.ones(1), torch.ones(1), torch.tensor([sigma]), 1.0)
        torch.testing.assert_close(found, torch.tensor([factor]))


def features_of(rows, time, seeds):
    """Images 0, 2, 4, ... are bright somewhere, the others dark; the later, the noisier."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    noise = (
        torch.stack([torch.randn(4, 4, 4, generator=g) for g in generators]) * time.view(-1, 1, 1, 1) / 500
    )
    noise[:, 0, 1, 2] += 4.0 * (1 - 2 * (rows % 2))
    return {"m0": noise, "o1": noise[:, :3, ::2, ::2]}


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    network = ClassifierNetwork(TAPS, 2, (16, 16))
    labels = torch.arange(40) % 2
    settings = ClassifierTrainingSettings(steps=200, batch_size=8, learning_rate=0.01, seed=0)
    result = train_classifier(
        network, features_of, labels, settings, torch.device("cpu"), lambda done, losses: None
    )
    return network, result


def test_training_learns_to_tell_the_classes_apart(trained):
    network, result = trained

    assert len(result.losses) == 200
    assert result.held_out == 4
    assert list(result.accuracy) == list(CHECKED_TIMES)
    assert result.accuracy[CHECKED_TIMES[0]] == 1
    rows = torch.arange(6)
    log_p = log_probability(
        network(features_of(rows, torch.full((6,), 50.0), rows), torch.full((6,), 50.0)), 0
    )
    assert (log_p[::2].exp() > 0.9).all()
    assert (log_p[1::2].exp() < 0.1).all()


@pytest.mark.parametrize(
    ("labels", "count", "held_out", "rest"),
    [
        ([0, 1, 0, 1], 2, [3, 2], [1, 0]),
        ([0, 1, 0, 2], 2, [2], [3, 1, 0]),  # images 3 and 1 are all that there is of their classes
        ([0, 0, 0, 1], 1, [2], [3, 1, 0]),
        ([1, 1], 1, [1], [0]),
    ],
)
def test_no_class_is_held_out_whole(labels, count, held_out, rest):
    found = split(torch.tensor(labels), torch.arange(len(labels)).flip(0), count)

    assert [part.tolist() for part in found] == [held_out, rest]


def test_the_same_seed_gives_the_same_head(trained):
    torch.manual_seed(0)
    network = ClassifierNetwork(TAPS, 2, (16, 16))
    settings = ClassifierTrainingSettings(steps=5, batch_size=8, learning_rate=0.01, seed=0)

    result = train_classifier(
        network, features_of, torch.arange(40) % 2, settings, torch.device("cpu"), lambda *_: None
    )

    assert result.losses[0] == trained[1].losses[0]


def test_an_interruption_keeps_the_best_state():
    class StopError(Exception):
        pass

    def on_step(done, losses):
        if done == 3:
            raise StopError

    network = ClassifierNetwork(TAPS, 2, (16, 16))
    settings = ClassifierTrainingSettings(steps=50, batch_size=4, learning_rate=0.01, seed=0)
    result = train_classifier(
        network, features_of, torch.arange(10) % 2, settings, torch.device("cpu"), on_step, StopError
    )

    assert result.interrupted
    assert len(result.losses) == 3
    assert not network.training


def test_report(trained):
    picture = draw_classifier_report(trained[1], 2, "heading")

    assert picture.shape == (400, 960, 3)
    assert 0 < picture.mean() < 1


def saved(path, classes=("cat", "dog")):
    head = ClassifierHead(ClassifierNetwork(TAPS, 2, (8, 8)).eval(), "a family", classes, {"images": 3})
    save_classifier_head(path, head)
    return head


def test_file_round_trip(tmp_path):
    head = saved(tmp_path / "head.safetensors")
    loaded = load_classifier_head(tmp_path / "head.safetensors")

    assert (loaded.classes, loaded.model_family, loaded.training) == (head.classes, "a family", {"images": 3})
    features = {"m0": torch.randn(2, 4, 6, 6), "o1": torch.randn(2, 3, 3, 3)}
    time = torch.tensor([10.0, 900.0])
    torch.testing.assert_close(loaded.network(features, time), head.network(features, time))


def test_names_with_brackets_come_back(tmp_path):
    """A description may have few brackets, but those in its texts do not count."""
    classes = tuple(f'[{number}] "quoted\\{{' for number in range(150))
    head = ClassifierHead(ClassifierNetwork(TAPS, len(classes), (8, 8)).eval(), "a family", classes)
    save_classifier_head(tmp_path / "head.safetensors", head)

    assert load_classifier_head(tmp_path / "head.safetensors").classes == classes


@pytest.mark.parametrize(
    "classes",
    [
        ("cat",),
        ("cat", "dog", "cow"),
        ("cat", ""),
        ("cat", " "),
        ("cat", "dog "),
        ("cat", "d\nog"),
        ("cat", "Cat"),
    ],
)
def test_file_with_other_classes_is_refused(tmp_path, classes):
    saved(tmp_path / "head.safetensors", classes)

    with pytest.raises(ValueError, match=r"head\.safetensors is damaged"):
        load_classifier_head(tmp_path / "head.safetensors")


def test_unknown_class_is_one_sentence_with_the_classes():
    head = ClassifierHead(ClassifierNetwork(TAPS, 2), "a family", ("red sphere", "blue box"))

    assert head.label(" Blue Box ") == 1
    with pytest.raises(ValueError, match=r"does not know 'cow'\. It knows red sphere, blue box\."):
        head.label("cow")


def test_accents_may_be_encoded_in_either_way():
    for composed, typed in (("caf\u00e9", "Cafe\u0301"), ("cafe\u0301", "Caf\u00c9")):
        assert ClassifierHead(ClassifierNetwork(TAPS, 2), "a family", ("cat", composed)).label(typed) == 1
