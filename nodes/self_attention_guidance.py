"""The Self-Attention Guidance node."""

from typing import Any

from comfy_api.latest import io

from ..host.keys import attach
from ..host.steering.sag_run import SelfAttentionGuidance
from ..host.steering.sag_step import BRANCHES, MASKS, SPACES, SelfAttentionSettings
from ..host.taps.blocks import attention_blocks, parse_blocks
from .schema import ADVANCED, percent


class InnerSelfAttentionGuidance(io.ComfyNode):
    """Patches a model so that every sampler guides by its self-attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Shared workflow files hold these inputs: what is added has a default, nothing is renamed."""
        return io.Schema(
            node_id="InnerSelfAttentionGuidance",
            display_name="Self-Attention Guidance (Inner)",
            category="model/patch/unet",
            description=(
                "Looks at what the model itself pays attention to, blurs just that, and steers away from the "
                "blurred result: crisper structure and detail. Put it between the model and the sampler."
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
                        "How strongly to steer away from the blurred image. Higher is crisper, too high is "
                        "harsh and distorted; 0 switches the node off, negative values soften."
                    ),
                ),
                io.Float.Input(
                    "blur_sigma",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    tooltip=(
                        "Width of the blur, in latent pixels (8 image pixels). Higher works on larger "
                        "structures, lower on fine detail; 0 is no blur and next to no effect."
                    ),
                ),
                io.Float.Input(
                    "threshold",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip=(
                        "Attention at which a place is blurred; 1 is the average of the image. Higher guides "
                        "fewer places, those looked at most; 0 guides the whole image."
                    ),
                ),
                io.String.Input(
                    "blocks",
                    default="m0",
                    tooltip=(
                        "Whose attention is read: m0 the middle block, d0, d1, ... going down, u0, u1, ... "
                        "going up, ranges (u0-u2), one transformer of a block (m0.0), several with commas. "
                        "The middle sees the composition; higher u numbers see finer detail. Flux, SD3 and "
                        "their like have b0, b1, ..., of which m0 is the one at half depth."
                    ),
                ),
                io.Combo.Input(
                    "branch",
                    options=list(BRANCHES),
                    default="auto",
                    tooltip=(
                        "Whose attention and estimate are used: the negative prompt's or the positive one's. "
                        "auto takes the negative where there is one and cfg is above 1, as the paper does."
                    ),
                ),
                io.Combo.Input(
                    "space",
                    options=list(SPACES),
                    default="eps",
                    tooltip=(
                        "What is extrapolated: the noise (eps, the paper) or the velocity (v, as diffusers "
                        "does on v-prediction models, weaker where there is much noise)."
                    ),
                    extra_dict=ADVANCED,
                ),
                percent(
                    "start_percent",
                    0.0,
                    "Where in the sampling guidance begins. Higher leaves the composition alone.",
                ),
                percent(
                    "end_percent",
                    1.0,
                    "Where in the sampling guidance ends. Lower saves time and leaves the last, fine details "
                    "alone; higher guides them too.",
                ),
                io.Int.Input(
                    "every_n_steps",
                    default=1,
                    min=1,
                    max=100,
                    tooltip=(
                        "A guided step needs one more evaluation of the model. Higher values do that only at "
                        "every n-th step and use the last guidance again in between: faster, less exact."
                    ),
                    extra_dict=ADVANCED,
                ),
                io.Combo.Input(
                    "mask",
                    options=list(MASKS),
                    default="attention",
                    optional=True,
                    tooltip=(
                        "Where to blur: where the attention is, or, to compare with it, everywhere (global), "
                        "where there is most detail (high frequency) or at random; these two over as much "
                        "area as the attention."
                    ),
                    extra_dict=ADVANCED,
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The guided model. Connect it to a sampler, or to more model patches."
                )
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, blocks: str, scale: float, mask: str = "attention", **settings: Any
    ) -> io.NodeOutput:
        """Check the blocks against the model and attach the guidance to a clone of it."""
        layers = parse_blocks(blocks, attention_blocks(model.get_model_object("diffusion_model")))
        if scale == 0:
            return io.NodeOutput(model.clone())
        guidance = SelfAttentionGuidance(
            SelfAttentionSettings(layers=layers, scale=scale, mask=mask, **settings)
        )
        return io.NodeOutput(attach(model, guidance))
