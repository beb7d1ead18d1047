"""The Feature Maps node: recorded features as colours and as regions."""

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..host.recording.executing import wired_run
from ..host.recording.queries import features_of
from ..pictures import feature_maps as maps
from ..pictures.captions import captioned
from ..pictures.images import images_of, require_images
from .attention_maps import AVERAGE_OR_EACH, BRANCHES
from .schema import ADVANCED, FEATURE_RECORD, search_aliases

BLOCKS = ("each", "together")
SHOWN = ("colours", "regions")


class InnerFeatureMaps(io.ComfyNode):
    """Draws the features that Record Features recorded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerFeatureMaps",
            display_name="Feature Maps",
            **search_aliases("PCA", "UNet features", "activations", "feature map"),
            category="image/inspection",
            description=(
                "Shows what the model distinguishes while the image forms: places with similar features "
                "have the same colour. Also splits the image into such regions, as masks."
            ),
            inputs=[
                FEATURE_RECORD.Input("record", tooltip="The record output of Record Features."),
                io.Latent.Input(
                    "latent",
                    tooltip=(
                        "The LATENT output of the recorded sampler. It makes this node run after that "
                        "sampler, and selects its run if several samplers share the model."
                    ),
                ),
                io.Combo.Input(
                    "branch",
                    options=list(BRANCHES),
                    default="positive",
                    tooltip="Which prompt's features to show: the positive one's or the negative one's.",
                ),
                io.Combo.Input(
                    "steps",
                    options=list(AVERAGE_OR_EACH),
                    default="average",
                    tooltip=(
                        "average: one picture, the mean of all recorded steps. each: one picture per step, "
                        "to play as a film; colours mean the same in all of them."
                    ),
                ),
                io.Combo.Input(
                    "blocks",
                    options=list(BLOCKS),
                    default=BLOCKS[0],
                    tooltip="each: one picture per block. together: one picture of all recorded blocks.",
                ),
                io.Combo.Input(
                    "show",
                    options=list(SHOWN),
                    default=SHOWN[0],
                    tooltip=(
                        "colours: the three directions in which features differ most, as red, green and "
                        "blue. regions: each region in one colour."
                    ),
                ),
                io.Int.Input(
                    "regions",
                    default=5,
                    min=2,
                    max=64,
                    tooltip=(
                        "The number of regions to split the picture into, by similarity. Higher values "
                        "separate more parts; lower values keep whole objects together."
                    ),
                ),
                io.Boolean.Input(
                    "legend",
                    default=True,
                    tooltip=(
                        "On: add a caption with block and step above each picture. Off: the picture alone, "
                        "at the size of the image."
                    ),
                ),
                io.Boolean.Input(
                    "smooth",
                    default=True,
                    tooltip="On: smooth transitions. Off: show each cell of the model's grid as a rectangle.",
                    extra_dict=ADVANCED,
                ),
                io.Float.Input(
                    "opacity",
                    default=0.65,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "How strongly the colours cover a connected image. Higher values show more of the "
                        "colours; 1 shows only the colours."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,  # the largest seed that scipy accepts
                    control_after_generate=False,
                    tooltip=(
                        "The seed for the search for regions. Another value, higher or lower, may split the "
                        "picture differently."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip=(
                        "The decoded image to draw the colours on. Leave unconnected to show the colours "
                        "alone."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    tooltip=(
                        "One picture for each block and step, in that order, and for each of these one per "
                        "image of the batch."
                    )
                ),
                io.Mask.Output(
                    tooltip=(
                        "The regions of each picture, one mask per region, at the size of the image. The "
                        "largest region comes first; each region keeps its place in this order in every "
                        "picture."
                    )
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        record: Any,
        latent: dict[str, Any],
        branch: str,
        steps: str,
        blocks: str,
        show: str,
        regions: int,
        legend: bool,
        smooth: bool,
        opacity: float,
        seed: int,
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        """IMAGE (N, H, W, 3) and MASK (N * regions, H, W). Raises ValueError if there is nothing to show."""
        if image is not None:
            require_images(image, "image")
        run = wired_run(record, cls.hidden, latent)
        found = maps.feature_pictures(
            features_of(run, branch), blocks == "each", steps == "each", regions, seed
        )
        size = run.image_size if image is None else tuple(image.shape[1:3])
        pictures, captions, masks = [], [], []
        for one in found:
            region = maps.regions_at_size(one.region, regions, size, smooth)
            shown = (
                maps.at_size(one.colours, size, smooth) if show == "colours" else one.region_colours[region]
            )
            if image is not None:
                shown = torch.lerp(images_of(image, len(shown)), shown, opacity)
            pictures.append(shown)
            masks.append(maps.region_masks(region, regions))
            numbers = range(1, len(shown) + 1)
            captions += [f"image {i}: {one.title}" if len(shown) > 1 else one.title for i in numbers]
        shown = torch.cat(pictures)
        return io.NodeOutput(captioned(shown, captions) if legend else shown, torch.cat(masks))
