"""The Attention Maps node: recorded attention as pictures and masks."""

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..host.recording.executing import wired_run
from ..host.recording.queries import received_maps, word_maps
from ..pictures import attention_maps as maps
from ..pictures.captions import ColourBar, captioned
from ..pictures.colour_map import COLOUR_MAPS
from ..pictures.images import require_images
from .schema import ADVANCED, ATTENTION_RECORD, UNCONNECTED, search_aliases
from .word_inputs import CLIP, CROSS, KINDS, MISSING, PROMPT, SELF, WORDS, valid

BRANCHES = ("positive", "negative")
AVERAGE_OR_EACH = ("average", "each")


class InnerAttentionMaps(io.ComfyNode):
    """Draws the attention that Record Attention recorded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerAttentionMaps",
            display_name="Attention Maps",
            **search_aliases(
                "attention map", "cross attention", "heatmap", "DAAM", "word map", "mask from prompt"
            ),
            category="image/inspection",
            description=(
                "Shows where the model looked while the image formed: which places the image attends to, or "
                "which places belong to each word of the prompt. Connect a record and the LATENT of the "
                "sampler that was recorded."
            ),
            inputs=[
                ATTENTION_RECORD.Input("record", tooltip="The record output of Record Attention."),
                io.Latent.Input(
                    "latent",
                    tooltip=(
                        "The LATENT output of the recorded sampler. It makes this node run after that "
                        "sampler, and selects its run if several samplers share the model."
                    ),
                ),
                io.Combo.Input(
                    "attention",
                    options=list(KINDS),
                    default=SELF,
                    tooltip=(
                        "self: how much attention each place receives from the rest of the image, the map "
                        "that Self-Attention Guidance uses. cross: how much attention each place pays to a "
                        "word of the prompt; requires clip and prompt."
                    ),
                ),
                io.Combo.Input(
                    "branch",
                    options=list(BRANCHES),
                    default="positive",
                    tooltip=(
                        "Which prompt's attention to show. The negative prompt has attention only if "
                        "CFG is above 1."
                    ),
                ),
                io.Combo.Input(
                    "steps",
                    options=list(AVERAGE_OR_EACH),
                    default="average",
                    tooltip=(
                        "average: one picture, the mean of all recorded steps. each: one picture per step, "
                        "to play as a film."
                    ),
                ),
                io.Combo.Input(
                    "blocks",
                    options=list(AVERAGE_OR_EACH),
                    default="average",
                    tooltip=(
                        "average: one picture, the mean of all recorded blocks. each: one picture per block."
                    ),
                ),
                WORDS,
                PROMPT,
                io.Float.Input(
                    "threshold",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip=(
                        "The MASK is white where attention is above this value; 1 is the average of the "
                        "picture. Higher values mask a smaller area. 0 gives a soft mask that is brighter "
                        "where there is more attention."
                    ),
                ),
                io.Combo.Input(
                    "colours",
                    options=list(COLOUR_MAPS),
                    default=next(iter(COLOUR_MAPS)),
                    tooltip="The colour map, from dark for no attention to light for the most.",
                ),
                io.Boolean.Input(
                    "legend",
                    default=True,
                    tooltip=(
                        "On: add a caption above each picture and a colour bar with numbers below it. Off: "
                        "the map alone, at the size of the image."
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
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "How strongly the map covers a connected image. Higher values dim the image more "
                        "and make the colours denser where there is attention; 0 shows the image alone."
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
                        "The attention value shown in the lightest colour; 0 is then the darkest. Higher "
                        "values make the pictures darker. Use the same value in two nodes to compare them. "
                        "0 chooses both ends from the maps."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Int.Input(
                    "prompt_number",
                    default=1,
                    min=1,
                    max=100,
                    tooltip=(
                        "For cross, if several prompts are combined: which of them the prompt input holds. "
                        "Higher numbers were combined later."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip=(
                        "The decoded image to draw the maps on. Leave unconnected to show the maps alone."
                    ),
                ),
                CLIP,
            ],
            outputs=[
                io.Image.Output(
                    tooltip=(
                        "One picture for each word, block and step, in that order, and for each of these "
                        "one per image of the batch."
                    )
                ),
                io.Mask.Output(
                    tooltip=(
                        "The masks of the same maps, in the same order and at the size of the image: white "
                        "where attention is above the threshold."
                    )
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def validate_inputs(
        cls, attention: str | None = None, prompt: str | None = None, clip: Any = UNCONNECTED
    ) -> bool | str:
        """Whether cross has what it needs, before anything is sampled."""
        return valid(attention, prompt, clip)

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
        """IMAGE (N, H, W, 3) and MASK (N, H, W). Raises ValueError if there is nothing to show."""
        if image is not None:
            require_images(image, "image")
        run = wired_run(record, cls.hidden, latent)
        if attention == SELF:
            by_word = {"self-attention": received_maps(run, branch)}
        elif clip is None or not prompt.strip():
            raise ValueError(MISSING)
        else:
            by_word = word_maps(run, branch, prompt_number - 1, clip, prompt, words)

        size = run.image_size if image is None else tuple(image.shape[1:3])
        pictures, masks = [], []
        for word, groups in maps.series(by_word, blocks == "each", steps == "each"):
            found = [maps.average(group.members, size, smooth) for group in groups]
            captions = maps.captions_of(word, groups, found, with_share=attention == CROSS)
            if attention == CROSS:
                found = [maps.relative(values) for values in found]
            low, high = (0.0, lightest) if lightest else maps.colour_range(found)
            shown = maps.in_colour(found, COLOUR_MAPS[colours], low, high, image, opacity)
            if legend:
                bar = ColourBar(COLOUR_MAPS[colours], low, high, "attention, 1 = average")
                shown = captioned(shown, captions, bar)
            pictures.append(shown)
            masks.append(maps.mask(torch.cat(found), threshold, low, high))
        return io.NodeOutput(torch.cat(pictures), torch.cat(masks))
