"""The Attention Spectrum node: whether the model looks where the detail and the objects are."""

import json
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..guidance.attention_spectrum import PATCH_SIZES, as_numbers, in_words, object_masks, overlap, spectra
from ..guidance.self_attention import average_on_finest_grid
from ..host.recording.executing import wired_run
from ..host.recording.queries import received_maps
from ..pictures.images import evenly_spaced, images_of, require_finite, require_images
from ..pictures.spectrum_plot import plot
from .attention_maps import BRANCHES
from .schema import ADVANCED, ATTENTION_RECORD, search_aliases


class InnerAttentionSpectrum(io.ComfyNode):
    """The frequency analysis of the SAG paper (arXiv:2210.00939v1), for one recorded run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerAttentionSpectrum",
            display_name="Attention Spectrum",
            **search_aliases("frequency", "Fourier", "attention map"),
            category="image/inspection",
            description=(
                "Measures whether the model looks where the detail is: compares the parts of the image that "
                "it looks at with the whole image, at every frequency from coarse to fine. With a mask of "
                "the objects, also measures whether it looks at them."
            ),
            inputs=[
                ATTENTION_RECORD.Input("record", tooltip="The record output of Record Attention."),
                io.Latent.Input(
                    "latent",
                    tooltip=(
                        "The LATENT output of the sampler that drew the image. It makes this node run after "
                        "that sampler, and selects its run if several samplers share the model."
                    ),
                ),
                io.Image.Input("image", tooltip="The decoded image of the same sampler."),
                io.Float.Input(
                    "threshold",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip=(
                        "The model is said to look at a place if attention there is above this value; 1 is "
                        "the average of the image. Higher values measure fewer places, those with the most "
                        "attention."
                    ),
                ),
                io.Float.Input(
                    "second_threshold",
                    default=1.3,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip=(
                        "A second threshold, for comparison. Higher values measure fewer places. The paper "
                        "compares 1 and 1.3."
                    ),
                ),
                io.Combo.Input(
                    "branch",
                    options=list(BRANCHES),
                    default="positive",
                    tooltip=(
                        "Which prompt's attention to measure. The negative prompt has attention only "
                        "if CFG is above 1."
                    ),
                ),
                io.Int.Input(
                    "random_masks",
                    default=100,
                    min=1,
                    max=10000,
                    tooltip=(
                        "The number of random masks to compare the overlap with objects against. Higher "
                        "values are more precise and take longer. Used only if objects is connected."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="The seed for the random masks. Any number; the same gives the same masks.",
                    extra_dict=ADVANCED,
                ),
                io.Mask.Input(
                    "objects",
                    optional=True,
                    tooltip=(
                        "A mask that is white on the objects in the image, to measure whether the model "
                        "looks at them. Leave unconnected to skip this."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="plot",
                    tooltip=(
                        "Top: the magnitude of each frequency, for patches of 8, 16 and 32 pixels. Bottom: "
                        "how much more of it there is where the model looks. Higher means more."
                    ),
                ),
                io.String.Output(display_name="numbers", tooltip="All values in the plot, as JSON."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        record: Any,
        latent: dict[str, Any],
        image: Tensor,
        threshold: float,
        second_threshold: float,
        branch: str,
        random_masks: int,
        seed: int,
        objects: Tensor | None = None,
    ) -> io.NodeOutput:
        """The plot (1, H, W, 3) and its numbers as JSON. Raises ValueError if there is nothing to measure."""
        require_images(image, "image")
        run = wired_run(record, cls.hidden, latent)
        recorded = [one.values.float() for one in received_maps(run, branch)]
        attention = average_on_finest_grid(recorded).flatten(0, -3)
        given = len(image)
        image = images_of(image, len(attention))
        height, width = image.shape[1:3]
        if min(height, width) < PATCH_SIZES[0]:
            raise ValueError(
                f"image: it is {width} x {height}, and the smallest patch that is measured has "
                f"{PATCH_SIZES[0]} pixels a side. Connect the decoded image."
            )
        require_finite(image, "image")
        thresholds = sorted({threshold, second_threshold})

        found = spectra(image, attention, thresholds)
        overlaps = {}
        if objects is not None:
            count = objects.shape[:-2].numel()
            objects = objects.reshape(count, *objects.shape[-2:]).cpu()
            if count not in (1, given, len(image)):
                raise ValueError(
                    f"objects: {count} masks do not match {given} images. Connect one mask, or one for each "
                    "image."
                )
            if count == given:
                objects = objects[evenly_spaced(given, len(image))]
            marked = object_masks(objects, image.shape[1:3], len(image))
            overlaps = {psi: overlap(attention, psi, marked, random_masks, seed) for psi in thresholds}
        return io.NodeOutput(
            plot(found, in_words(found, overlaps))[None], json.dumps(as_numbers(found, overlaps), indent=1)
        )
