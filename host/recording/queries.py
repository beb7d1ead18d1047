"""Selects what to show of a recorded run: a branch, layer by layer, and words of its prompt."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ...depth_head.rendering import enlarge
from ...pictures.layer_maps import LayerMap
from .prompt_words import prompt_words
from .records import AttentionStep, FeatureStep, Run


def received_maps(run: Run[AttentionStep], branch: str) -> list[LayerMap]:
    """The self-attention received in a branch, (B, *grid), step by step. ValueError if there is none."""
    return _of_branch(
        branch,
        "Record Attention: no self-attention",
        (
            (of, LayerMap(step.number, layer, values))
            for step in run.steps
            for (of, layer), values in step.received.items()
        ),
    )


def features_of(run: Run[FeatureStep], branch: str) -> list[LayerMap]:
    """The features of a branch, (B, C, *grid), step by step. Raises ValueError if there are none."""
    return _of_branch(
        branch,
        "Record Features: no features",
        (
            (of, LayerMap(step.number, layer, values))
            for step in run.steps
            for (of, layer), values in step.features.items()
        ),
    )


def depths_of(run: Run[FeatureStep]) -> list[Tensor]:
    """The depth (B, 1, h, w), relative inverse, step by step. Raises ValueError if there is none.

    A sampler may enlarge the latent between steps: all are at the size of the last.
    """
    depths = [step.depth.float() for step in run.steps if step.depth is not None]
    if not depths:
        raise ValueError(
            "Record Features: no depth was recorded in this run. Connect the depth head to Record Features "
            "too, and let one prompt cover the whole image."
        )
    return [enlarge(depth, depths[-1].shape[-2:]) for depth in depths]


def word_maps(
    run: Run[AttentionStep], branch: str, condition: int, clip: Any, prompt: str, wanted: str
) -> dict[str, list[LayerMap]]:
    """The share of attention that each place gives to each wanted word, (B, *grid) in [0, 1], step by step.

    condition: the number of the prompt among those of the branch. clip, prompt, wanted: prompt_words. Raises
    ValueError if there is no such attention, or if it belongs to another prompt.
    """
    attention = _of_branch(
        branch,
        "Record Attention: no cross-attention",
        (
            (of, (number, LayerMap(step.number, layer, values)))
            for step in run.steps
            for (of, layer, number), values in step.prompt.items()
        ),
    )
    count = max(number for number, _ in attention) + 1
    if condition >= count:
        raise ValueError(
            f"prompt_number: the {branch} conditioning of this run has {count} prompt{'s' * (count > 1)}. "
            f"Set it to {count} or less."
        )
    of_prompt = [one for number, one in attention if number == condition]
    if not of_prompt:
        others = ", ".join(str(number + 1) for number in sorted({number for number, _ in attention}))
        raise ValueError(
            f"prompt_number: prompt {condition + 1} of the {branch} conditioning is used in none of the "
            f"recorded steps; those used there have the number {others}."
        )
    references = (branch, condition) in run.references
    words = prompt_words(clip, prompt, of_prompt[0].values.shape[1], wanted, references=references)
    return {
        word.text: [
            one._replace(values=one.values[:, list(word.places)].float().sum(dim=1)) for one in of_prompt
        ]
        for word in words
    }


def _of_branch(branch: str, missing: str, found: Iterable[tuple[str, Any]]) -> list[Any]:
    """The maps of a branch. Raises ValueError, which says what is missing and what was recorded instead."""
    by_branch: dict[str, list[Any]] = {}
    for of, one in found:
        by_branch.setdefault(of, []).append(one)
    if branch in by_branch:
        return by_branch[branch]
    if not by_branch:
        raise ValueError(f"{missing} was recorded in this run. Choose other blocks in the node that records.")
    hint = " At cfg 1 the sampler leaves the negative prompt out." if branch == "negative" else ""
    raise ValueError(
        f"{missing} of the {branch} prompt was recorded in this run. Set branch to "
        f"{' or '.join(by_branch)}.{hint}"
    )
