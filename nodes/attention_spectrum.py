"""The Attention Spectrum node: does the model look where the detail and the objects are?"""

import json
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..guidance.attention_spectrum import as_numbers, in_words, overlap, spectra
from ..guidance.self_attention import average_on_finest_grid, resize_nearest
from ..host.recording.executing import wired_run
from ..host.recording.queries import received_maps
from ..pictures.attention_maps import images_of
from ..pictures.spectrum_plot import plot
from .attention_maps import BRANCHES
from .schema import ADVANCED, ATTENTION_RECORD


class InnerAttentionSpectrum(io.ComfyNode):
    """The frequency analysis of the SAG paper, of one run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Shared workflow files hold these inputs: what is added has a default, nothing is renamed."""
        return io.Schema(
            node_id="InnerAttentionSpectrum",
            display_name="Attention Spectrum",
            category="image/inspection",
            description=(
                "Measures whether the model looks where the detail is: how much of every frequency, from "
                "coarse to fine, the looked-at parts of the image have, against all of it. With a mask of "
                "objects, also whether it looks at these."
            ),
            inputs=[
                ATTENTION_RECORD.Input(
                    "record", tooltip="What Record Attention wrote down while its MODEL was sampled."
                ),
                io.Latent.Input(
                    "latent",
                    tooltip=(
                        "The LATENT of the sampler that drew the image. It makes this node wait for that "
                        "sampler, and tells it from others that use the same recorded model."
                    ),
                ),
                io.Image.Input("image", tooltip="The decoded image of the same sampler, to be measured."),
                io.Float.Input(
                    "threshold",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip=(
                        "Looked at is where attention is above this; 1 is the average of the image. Higher "
                        "measures fewer places, those looked at most."
                    ),
                ),
                io.Float.Input(
                    "second_threshold",
                    default=1.3,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip=(
                        "A second threshold to compare with; higher measures fewer places. The paper "
                        "compares 1 and 1.3."
                    ),
                ),
                io.Combo.Input(
                    "branch",
                    options=list(BRANCHES),
                    default="positive",
                    tooltip=(
                        "Whose attention: that of the positive prompt or of the negative one, which is there "
                        "where cfg is above 1."
                    ),
                ),
                io.Int.Input(
                    "random_masks",
                    default=100,
                    min=1,
                    max=10000,
                    tooltip=(
                        "With objects: how many random masks their overlap is compared with. Higher is more "
                        "exact and takes longer."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Chooses the random masks; higher is another choice, not a better one.",
                    extra_dict=ADVANCED,
                ),
                io.Mask.Input(
                    "objects",
                    optional=True,
                    tooltip="A mask, white on the objects in the image: does the model look at them?",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="plot",
                    tooltip=(
                        "Above, how much of each frequency there is, for patches of 8, 16 and 32 pixels; "
                        "below, how much more where the model looks. Higher is more."
                    ),
                ),
                io.String.Output(display_name="numbers", tooltip="Everything in the plot as JSON."),
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
        """The plot and its numbers. Raises ValueError, with what to wire, if there is nothing to measure."""
        run = wired_run(record, cls.hidden)
        recorded = [one.values.float() for one in received_maps(run, branch)]
        attention = average_on_finest_grid(recorded).flatten(0, -3)
        image = images_of(image, len(attention))
        thresholds = sorted({threshold, second_threshold})

        found = spectra(image, attention, thresholds)
        overlaps = {}
        if objects is not None:
            if len(objects) not in (1, len(image)):
                raise ValueError(
                    f"objects: {len(objects)} masks do not fit {len(image)} images. Wire one, or one for "
                    "each."
                )
            marked = (resize_nearest(objects, image.shape[1:3]) > 0.5).float().expand(len(image), -1, -1)
            overlaps = {psi: overlap(attention, psi, marked, random_masks, seed) for psi in thresholds}
        return io.NodeOutput(
            plot(found, in_words(found, overlaps))[None], json.dumps(as_numbers(found, overlaps), indent=1)
        )
