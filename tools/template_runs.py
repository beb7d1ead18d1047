"""Runs a workflow with every sampler next to a twin on the plain model, and keeps latents and pictures.

The latent of a sampler differs from its twin's where the model is guided, and is the same bit for bit where
it is only recorded.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from .host_server import HostServer, Prompt
from .setup_host import ROOT

# Smaller changes of a latent, relative to its standard deviation, are no guidance.
LEAST_CHANGE = 1e-3


class TemplateRunError(Exception):
    """A workflow ran and did not do what it should. The message says what it did."""


class Twins(NamedTuple):
    """The SaveLatent nodes of a sampler and of its plain twin. guided: whether they should differ."""

    sampler: str
    plain: str
    guided: bool


@dataclass(frozen=True)
class TemplateRun:
    """latents: by SaveLatent node. pictures: by the node that shows them."""

    latents: dict[str, Tensor]
    pictures: dict[str, list[Image.Image]]
    twins: list[Twins]

    @property
    def changes(self) -> list[float]:
        """For each pair of twins, the deviation of their difference divided by that of the plain latent."""
        return [
            float((self.latents[sampler] - self.latents[plain]).std() / self.latents[plain].std())
            for sampler, plain, _ in self.twins
        ]

    def require_sound(self) -> None:
        """Raises TemplateRunError for what is not finite, records that change something, guidance that
        changes nothing.
        """
        for name, latent in self.latents.items():
            if not latent.isfinite().all():
                raise TemplateRunError(f"{name} is not finite")
        for name, pictures in self.pictures.items():
            for picture in pictures:  # values that are not finite become one colour
                if not np.ptp(np.asarray(picture.convert("RGB")), axis=(0, 1)).any():
                    raise TemplateRunError(f"a picture of node {name} has a single colour")
        for (sampler, plain, guided), change in zip(self.twins, self.changes, strict=True):
            if guided and change < LEAST_CHANGE:
                raise TemplateRunError(f"guidance changes {sampler} by {change:.1e} of its deviation only")
            if not guided and not torch.equal(self.latents[sampler], self.latents[plain]):
                raise TemplateRunError(f"recording changes {sampler}")


def template(name: str) -> Prompt:
    """A workflow of the pack, in the API's format."""
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


def shortened(prompt: Prompt, inputs: Mapping[str, Mapping[str, Any]]) -> Prompt:
    """The prompt with these inputs in the nodes of a class: {"KSampler": {"steps": 2}}."""
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        node["inputs"] |= inputs.get(node["class_type"], {})
    return prompt


def with_twins(prompt: Prompt) -> tuple[Prompt, list[Twins]]:
    """The prompt with a plain twin of each sampler whose model is patched; the latents of both are saved.

    A sampler that continues another one's latent has no twin.
    """
    prompt, numbers, pairs = copy.deepcopy(prompt), itertools.count(1), []

    def saved(sampler: str) -> str:
        node = f"latent {next(numbers)}"
        inputs = {"samples": [sampler, 0], "filename_prefix": node}
        prompt[node] = {"class_type": "SaveLatent", "inputs": inputs}
        return node

    for name, node in list(prompt.items()):
        patches = list(patches_of(prompt, node)) if node["class_type"] == "KSampler" else []
        if not patches or prompt[node["inputs"]["latent_image"][0]]["class_type"] != "EmptyLatentImage":
            continue
        loaded = prompt[patches[-1]]["inputs"]["model"]
        plain = f"plain {name}"
        # If the workflow has such a sampler, the host evaluates it once.
        prompt[plain] = {"class_type": "KSampler", "inputs": node["inputs"] | {"model": loaded}}
        guided = any(prompt[patch]["class_type"].endswith("Guidance") for patch in patches)
        pairs.append(Twins(saved(name), saved(plain), guided))
    return prompt, pairs


def patches_of(prompt: Prompt, node: Mapping[str, Any]) -> Iterator[str]:
    """The nodes between the loader of a node's model and the node, the last first."""
    name, _ = node["inputs"]["model"]
    while "model" in prompt[name]["inputs"]:
        yield name
        name, _ = prompt[name]["inputs"]["model"]


def run_with_twins(
    server: HostServer, prompt: Prompt, change: Callable[[Prompt], Prompt] = copy.deepcopy
) -> TemplateRun:
    """Run a prompt; change: of the prompt with the twins in it. Raises HostServerError if it fails."""
    prompt, twins = with_twins(prompt)
    prompt = change(prompt)
    files = server.run(prompt)
    output = Path(server.base.name, "output")
    return TemplateRun(
        {
            name: load_file(max(output.glob(f"{name}_*.latent")))["latent_tensor"]
            for name, node in prompt.items()
            if node["class_type"] == "SaveLatent"
        },
        {name: [Image.open(io.BytesIO(png)) for png in pngs] for name, pngs in files.items()},
        twins,
    )
