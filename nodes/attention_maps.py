"""The Attention Maps node: a recorded run as pictures."""

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..host.recording.executing import wired_run
from ..host.recording.queries import received_maps, word_maps
from ..pictures import attention_maps as maps
from ..pictures.captions import ColourBar, captioned
from ..pictures.colour_map import COLOUR_MAPS
from .schema import ADVANCED, ATTENTION_RECORD

KINDS = ("self", "cross")
BRANCHES = ("positive", "negative")
AVERAGE_OR_EACH = ("average", "each")


class InnerAttentionMaps(io.ComfyNode):
    """Shows what Record Attention recorded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Shared workflow files hold these inputs: what is added has a default, nothing is renamed."""
        return io.Schema(
            node_id="InnerAttentionMaps",
            display_name="Attention Maps",
            category="image/inspection",
            description=(
                "Shows where the model looked while the image formed: what the image itself looks at, or the "
                "places that belong to each word of the prompt. Needs a record and the LATENT of its sampler."
            ),
            inputs=[
                ATTENTION_RECORD.Input(
                    "record", tooltip="What Record Attention wrote down while its MODEL was sampled."
                ),
                io.Latent.Input(
                    "latent",
                    tooltip=(
                        "The LATENT of the sampler whose attention is shown. It makes this node wait for "
                        "that sampler, and tells it from others that use the same recorded model."
                    ),
                ),
                io.Combo.Input(
                    "attention",
                    options=list(KINDS),
                    default="self",
                    tooltip=(
                        "self: which places the rest of the image looks at, as Self-Attention Guidance uses "
                        "it. cross: which places look at a word of the prompt; needs clip and prompt."
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
                io.Combo.Input(
                    "steps",
                    options=list(AVERAGE_OR_EACH),
                    default="average",
                    tooltip="average: one picture of all recorded steps. each: a picture a step, as a film.",
                ),
                io.Combo.Input(
                    "blocks",
                    options=list(AVERAGE_OR_EACH),
                    default="average",
                    tooltip="average: one picture of all recorded blocks. each: a picture a block.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip=(
                        "For cross: which words of the prompt, separated by commas; several in a row ('red "
                        "sphere') make one picture. Empty shows every word."
                    ),
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="For cross: the prompt that the image was sampled with, exactly.",
                ),
                io.Float.Input(
                    "threshold",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip=(
                        "The MASK is white where attention is above this; 1 is the average of the picture. "
                        "Higher masks less. 0 gives a soft mask that grows with the attention."
                    ),
                ),
                io.Combo.Input(
                    "colours",
                    options=list(COLOUR_MAPS),
                    default=next(iter(COLOUR_MAPS)),
                    tooltip="The colours, from dark for no attention to light for the most.",
                ),
                io.Boolean.Input(
                    "legend",
                    default=True,
                    tooltip=(
                        "Adds a caption above each picture and the colours with their numbers below. Off: "
                        "the map alone, at the size of the image."
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
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "How much an image that is wired gives way to the map. Higher dims it more and lays "
                        "the colours thicker where attention is; 0 is the image alone."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Float.Input(
                    "lightest",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip=(
                        "The attention that has the lightest colour, 0 having the darkest. Higher makes the "
                        "pictures darker; set the same number in two nodes to compare them. 0 chooses both "
                        "ends from the maps."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Int.Input(
                    "prompt_number",
                    default=1,
                    min=1,
                    max=100,
                    tooltip=(
                        "For cross, where several prompts are combined: which of them `prompt` is. Higher "
                        "numbers were combined later."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The decoded image, to lay the maps over it.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="For cross: the CLIP that encoded the prompt. It knows which tokens are a word.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    tooltip=(
                        "A picture a word, block and step, in this order, and of each of these one for "
                        "every image of the batch."
                    )
                ),
                io.Mask.Output(
                    tooltip=(
                        "The masks of the same maps in the same order, at the size of the image: white where "
                        "attention is above the threshold."
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
        attention: str,
        branch: str,
        steps: str,
        blocks: str,
        words: str,
        prompt: str,
        threshold: float,
        colours: str,
        legend: bool,
        smooth: bool,
        opacity: float,
        lightest: float,
        prompt_number: int,
        image: Tensor | None = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        """IMAGE and MASK. Raises ValueError, with what to wire, where there is nothing to show."""
        run = wired_run(record, cls.hidden)
        if attention == "self":
            by_word = {"self-attention": received_maps(run, branch)}
        elif clip is None or not prompt.strip():
            raise ValueError(
                "Attention Maps: for cross-attention, wire the CLIP and write the prompt that the image was "
                "sampled with."
            )
        else:
            by_word = word_maps(run, branch, prompt_number - 1, clip, prompt, words)

        size = run.image_size if image is None else tuple(image.shape[1:3])
        pictures, masks = [], []
        for word, groups in maps.series(by_word, blocks == "each", steps == "each"):
            found = [maps.average(group.members, size, smooth) for group in groups]
            captions = maps.captions_of(word, groups, found, with_share=attention == "cross")
            if attention == "cross":
                found = [maps.relative(values) for values in found]
            low, high = (0.0, lightest) if lightest else maps.colour_range(found)
            shown = maps.in_colour(found, COLOUR_MAPS[colours], low, high, image, opacity)
            if legend:
                bar = ColourBar(COLOUR_MAPS[colours], low, high, "attention, 1 = average")
                shown = captioned(shown, captions, bar)
            pictures.append(shown)
            masks.append(maps.mask(torch.cat(found), threshold, low, high))
        return io.NodeOutput(torch.cat(pictures), torch.cat(masks))
