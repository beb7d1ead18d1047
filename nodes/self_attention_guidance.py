"""The Self-Attention Guidance node."""

import logging
from typing import Any

from comfy_api.latest import io

from ..host.keys import attach
from ..host.steering.sag_run import SelfAttentionGuidance
from ..host.steering.sag_settings import BRANCHES, MASKS, SPACES, SelfAttentionSettings
from ..host.taps.blocks import attention_blocks, parse_blocks
from .schema import ADVANCED, percent, search_aliases


class InnerSelfAttentionGuidance(io.ComfyNode):
    """Attaches Self-Attention Guidance (arXiv:2210.00939) to a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerSelfAttentionGuidance",
            display_name="Self-Attention Guidance (SAG, Inner)",
            **search_aliases("SAG", "attention guidance"),
            category="model/patch/unet",
            description=(
                "Finds where the model's own attention is high, blurs a copy of the image there, and steers "
                "away from the blurred result. Connect it between the model and the sampler."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to guide, after its LoRAs."),
                io.Float.Input(
                    "scale",
                    default=0.75,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip=(
                        "How strongly to steer away from the blurred image. Higher values change the image "
                        "more; too high a value looks harsh and distorted. 0 turns the node off; negative "
                        "values steer the other way."
                    ),
                ),
                io.Float.Input(
                    "blur_sigma",
                    default=1.0,
                    min=0.0,
                    max=64.0,
                    step=0.1,
                    tooltip=(
                        "The width of the blur, in latent pixels (8 image pixels). Higher values affect "
                        "larger structures, lower values fine detail; 0 does not blur, which turns the node "
                        "off."
                    ),
                ),
                io.Float.Input(
                    "threshold",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip=(
                        "Places with attention above this value are blurred; 1 is the average of the image. "
                        "Higher values guide fewer places, those with the most attention; 0 guides the "
                        "whole image."
                    ),
                ),
                io.String.Input(
                    "blocks",
                    default="m0",
                    tooltip=(
                        "The blocks to read attention from. m0 is the middle block; d0, d1, ... are the "
                        "blocks going down, u0, u1, ... those going up. u0-u2 is a range, m0.0 one "
                        "transformer of a block; separate several with commas. The middle sees the "
                        "composition; higher u numbers see finer detail. Flux, SD3 and similar models have "
                        "b0, b1, ... instead, and m0 is the one at half depth."
                    ),
                ),
                io.Combo.Input(
                    "branch",
                    options=list(BRANCHES),
                    default="auto",
                    tooltip=(
                        "Which prompt's attention and estimate to use. auto uses the negative prompt if "
                        "there is one and CFG is above 1, as in the paper, and the positive prompt "
                        "otherwise."
                    ),
                ),
                io.Combo.Input(
                    "space",
                    options=list(SPACES),
                    default="eps",
                    tooltip=(
                        "What to extrapolate. eps: the noise, as in the paper; it may soften edges that "
                        "the model is sure of. v: the velocity, as diffusers does for v-prediction models; "
                        "sharper, and weaker at high noise."
                    ),
                    extra_dict=ADVANCED,
                ),
                percent(
                    "start_percent",
                    0.0,
                    "The point in the sampling, from 0 to 1, at which guidance starts. Higher values leave "
                    "the composition alone.",
                ),
                percent(
                    "end_percent",
                    1.0,
                    "The point in the sampling, from 0 to 1, at which guidance ends. Lower values save time "
                    "and leave the last, fine details alone; higher values guide them too.",
                ),
                io.Int.Input(
                    "every_n_steps",
                    default=1,
                    min=1,
                    max=100,
                    tooltip=(
                        "A guided step needs one more evaluation of the model. Higher values run it only at "
                        "every n-th step and reuse the last guidance in between: faster, but less exact."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Combo.Input(
                    "mask",
                    options=list(MASKS),
                    default="attention",
                    optional=True,
                    tooltip=(
                        "Where to blur. attention: where attention is above the threshold. The others are "
                        "for comparison: global blurs everywhere, high frequency where there is most "
                        "detail, random at random. The last two cover the same area as attention."
                    ),
                    extra_dict=ADVANCED,
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The guided model. Connect it to a sampler or to further model patches."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        blocks: str,
        scale: float,
        blur_sigma: float,
        mask: str = "attention",
        **settings: Any,
    ) -> io.NodeOutput:
        """A guided clone of the model. Raises ValueError for unknown blocks."""
        layers = parse_blocks(blocks, attention_blocks(model.get_model_object("diffusion_model")))
        for name, value in (("scale", scale), ("blur_sigma", blur_sigma)):
            if value == 0:
                logging.warning(
                    "Self-Attention Guidance: it does nothing, because %s is 0. Raise it, or bypass the "
                    "node.",
                    name,
                )
        if 0 in (scale, blur_sigma):
            return io.NodeOutput(model.clone())
        guidance = SelfAttentionGuidance(
            SelfAttentionSettings(layers=layers, scale=scale, blur_sigma=blur_sigma, mask=mask, **settings)
        )
        return io.NodeOutput(attach(model, guidance))
