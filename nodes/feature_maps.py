"""The Feature Maps node: what the blocks of a model computed, as colours and regions."""

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..host.recording.executing import wired_run
from ..host.recording.queries import features_of
from ..pictures import feature_maps as maps
from ..pictures.attention_maps import images_of
from ..pictures.captions import captioned
from .attention_maps import AVERAGE_OR_EACH, BRANCHES
from .schema import ADVANCED, FEATURE_RECORD

BLOCKS = ("each", "together")
SHOWN = ("colours", "regions")


class InnerFeatureMaps(io.ComfyNode):
    """Shows what Record Features recorded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Shared workflow files hold these inputs: what is added has a default, nothing is renamed."""
        return io.Schema(
            node_id="InnerFeatureMaps",
            display_name="Feature Maps",
            category="image/inspection",
            description=(
                "Shows what the model tells apart inside while the image forms: places that are alike to it "
                "have the same colour. Also cuts the image into such regions, as masks."
            ),
            inputs=[
                FEATURE_RECORD.Input(
                    "record", tooltip="What Record Features wrote down while its MODEL was sampled."
                ),
                io.Latent.Input(
                    "latent",
                    tooltip=(
                        "The LATENT of the sampler whose features are shown. It makes this node wait for "
                        "that sampler, and tells it from others that use the same recorded model."
                    ),
                ),
                io.Combo.Input(
                    "branch",
                    options=list(BRANCHES),
                    default="positive",
                    tooltip="Whose features: those with the positive prompt or with the negative one.",
                ),
                io.Combo.Input(
                    "steps",
                    options=list(AVERAGE_OR_EACH),
                    default="average",
                    tooltip=(
                        "average: one picture of all recorded steps. each: a picture a step, in colours that "
                        "mean the same in all, as a film."
                    ),
                ),
                io.Combo.Input(
                    "blocks",
                    options=list(BLOCKS),
                    default=BLOCKS[0],
                    tooltip="each: a picture a block. together: one picture of all recorded blocks.",
                ),
                io.Combo.Input(
                    "show",
                    options=list(SHOWN),
                    default=SHOWN[0],
                    tooltip=(
                        "colours: the three directions in which features differ most, as red, green and "
                        "blue. regions: every region in one colour."
                    ),
                ),
                io.Int.Input(
                    "regions",
                    default=5,
                    min=2,
                    max=64,
                    tooltip=(
                        "Into how many regions the picture is cut, by likeness. Higher tells more parts "
                        "apart; lower keeps whole things together."
                    ),
                ),
                io.Boolean.Input(
                    "legend",
                    default=True,
                    tooltip=(
                        "Adds a caption with block and step above each picture. Off: the picture alone, at "
                        "the size of the image."
                    ),
                ),
                io.Boolean.Input(
                    "smooth",
                    default=True,
                    tooltip="On: soft transitions. Off: every token is the rectangle that it covers.",
                    extra_dict=ADVANCED,
                ),
                io.Float.Input(
                    "opacity",
                    default=0.65,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "How much the colours cover the image, where one is wired. Higher shows more of the "
                        "colours, 1 these alone."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,  # scipy takes no more
                    control_after_generate=False,
                    tooltip=(
                        "Where the search for regions begins; another number, higher or lower, may cut the "
                        "picture differently."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="The decoded image, to lay the colours over it."
                ),
            ],
            outputs=[
                io.Image.Output(
                    tooltip=(
                        "A picture a block and step, in this order, and of each of these one for every image "
                        "of the batch."
                    )
                ),
                io.Mask.Output(
                    tooltip=(
                        "The regions of each picture, one mask a region, at the size of the image; the "
                        "largest region comes first, and a region has the same place in the order of every "
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
        """IMAGE and MASK. Raises ValueError, with what to wire, where there is nothing to show."""
        run = wired_run(record, cls.hidden)
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
        pictures = torch.cat(pictures)
        return io.NodeOutput(captioned(pictures, captions) if legend else pictures, torch.cat(masks))
