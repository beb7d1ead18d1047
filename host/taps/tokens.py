"""Where the image and the prompt are in the sequence of a transformer, in one forward pass.

It follows from the order of the parts (joint_models.py) and the sizes of those that are known.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .hooks import forward_pre_hook
from .joint_models import IMAGE, OTHER, PROMPT, REFERENCES, TEXTS, JointModel


class Tokens:
    """Where the tokens of the image and of the prompt are in one forward pass of a joint model.

    x (B, C, *spatial) and context (B, tokens, d) are the input of the pass; grid is the image's. Other inputs
    of the model may change the sequence, so a pass is read inside `observing`. cut: the tokens of reference
    images that another node has left out of the sequence.
    """

    def __init__(self, joint: JointModel, diffusion_model: Any, x: Tensor, context: Tensor | None) -> None:
        patch = joint.patch if isinstance(joint.patch, int) else getattr(diffusion_model, joint.patch)
        sides = [patch, patch] if isinstance(patch, int) else list(patch)
        sides = [1] * (x.ndim - 2 - len(sides)) + sides[2 - x.ndim :]
        self.batch = len(x)
        self.grid: tuple[int, ...] = tuple(-(-n // side) for n, side in zip(x.shape[2:], sides, strict=True))
        self.count = torch.Size(self.grid).numel()
        self.cut = 0
        self.sequence = joint.sequence
        if getattr(diffusion_model, "ref_conv", None) is not None:  # Wan Fun
            self.sequence = (REFERENCES, IMAGE)
        if getattr(diffusion_model, "vision_in", None) is not None:  # HunyuanVideo 1.5
            self.sequence = (OTHER, PROMPT, IMAGE)
        self.multiple: int = getattr(diffusion_model, "pad_tokens_multiple", None) or 1
        self.sizes = {IMAGE: self.filled(self.count), TEXTS: 0}
        longest = getattr(diffusion_model, "txt_max_length", None)  # PixelDiT cuts the prompt
        self.sizes[PROMPT] = 0 if context is None else context[:, :longest].shape[1]

    def filled(self, count: int) -> int:
        """How many tokens a text or an image has in the sequence: Z-Image fills each up to a multiple."""
        return -(-count // self.multiple) * self.multiple

    @contextmanager
    def observing(self, diffusion_model: torch.nn.Module) -> Iterator[None]:
        """Context in which the model's next pass tells what lengthens its sequence."""
        with forward_pre_hook(diffusion_model, self._observe):
            yield

    def _observe(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Forward pre-hook of the model."""
        if kwargs.get("image_cond") is not None:  # HiDream-E1: another image on the right, in every row
            self.sizes.pop(IMAGE, None)
        if TEXTS in self.sequence:  # Z-Image Omni: a text of one token for a reference image without
            references, texts = kwargs.get("ref_latents", ()), kwargs.get("ref_contexts", ())
            lengths = [text.shape[1] for text in texts[: len(references)]]
            self.sizes[TEXTS] = sum(map(self.filled, [*lengths, *[1] * (len(references) - len(lengths))]))
        options = kwargs.get("transformer_options", {})
        patches = options.get("patches", {})
        if "post_input" not in patches:
            return args, kwargs
        before: list[tuple[int, int | None]] = []

        def first(inputs: dict[str, Any]) -> dict[str, Any]:
            before.append(_lengths(inputs))
            return inputs

        def last(inputs: dict[str, Any]) -> dict[str, Any]:
            self._lengthened(before.pop(), _lengths(inputs))
            return inputs

        patches = patches | {"post_input": [first, *patches["post_input"], last]}
        return args, kwargs | {"transformer_options": options | {"patches": patches}}

    def _lengthened(self, before: tuple[int, int | None], after: tuple[int, int | None]) -> None:
        """Patches of other nodes have changed the lengths of the images and the text, as USO does.

        The prompt is then somewhere in the text. References may be cut off, but what is added to the images
        may be anywhere.
        """
        (images, text), (images_now, text_now) = before, after
        self.cut = max(0, images - images_now)
        if images_now > images:
            self.sizes.pop(IMAGE, None)
        if text_now is not None and text_now != text:
            self.sequence = tuple(OTHER if part == PROMPT else part for part in self.sequence)
            self.sizes[OTHER] = text_now

    def image(self, length: int) -> slice | None:
        """The image in a sequence of all tokens; None if the sequence is not the model's."""
        start = self._start(IMAGE, self.sequence, length)
        return None if start is None else slice(start, start + self.count)

    def image_among_images(self, length: int) -> slice | None:
        """The image in a sequence without any text, as Tokens.image."""
        images = [part for part in self.sequence if part in (IMAGE, REFERENCES)]
        start = self._start(IMAGE, images, length)
        return None if start is None else slice(start, start + self.count)

    def prompt(self, length: int) -> slice:
        """The prompt in a sequence of all tokens; empty if it is not known to be there."""
        start, count = self._start(PROMPT, self.sequence, length), self.sizes[PROMPT]
        return slice(0) if start is None or not count else slice(start, start + count)

    def _start(self, part: str, sequence: Sequence[str], length: int) -> int | None:
        """Where a part begins: counted from the side on which all sizes are known."""
        if part not in sequence or part not in self.sizes:
            return None
        unknown = [i for i, p in enumerate(sequence) if p not in self.sizes]
        known = [self.sizes.get(p, 0) for p in sequence]
        rest = length - sum(known)
        if rest < 0 or (rest > 0 and not unknown):
            return None
        place = sequence.index(part)
        if rest == 0 or all(i > place for i in unknown):
            return sum(known[:place])
        if all(i < place for i in unknown):
            return length - sum(known[place:])
        return None


def _lengths(inputs: dict[str, Any]) -> tuple[int, int | None]:
    """The tokens of the images and of the text that a post_input patch gets; None where it gets no text."""
    text = inputs.get("txt")
    return inputs["img"].flatten(1, -2).shape[1], None if text is None else text.shape[1]
