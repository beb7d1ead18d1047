"""The Depth-Aware Guidance node."""

from typing import Any

import torch
from comfy_api.latest import io

from ..depth_head.prior import DepthPrior
from ..host.depth.heads import HostedDepthHead, require_head_fits
from ..host.depth.priors import depth_maps
from ..host.keys import attach
from ..host.recording.executing import executing
from ..host.steering.dag_losses import MODES, DepthAwareSettings
from ..host.steering.dag_run import DepthAwareGuidance
from .schema import ADVANCED, DEPTH_HEAD, DEPTH_PRIOR, percent

STRONGEST = 10.0
SELF_START = TARGET_END = 0.6


class InnerDepthAwareGuidance(io.ComfyNode):
    """Patches a model so that every sampler guides by the depth that is readable from its features."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Shared workflow files hold these inputs: what is added has a default, nothing is renamed."""
        return io.Schema(
            node_id="InnerDepthAwareGuidance",
            display_name="Depth-Aware Guidance",
            category="model/patch/unet",
            description=(
                "Reads the depth of the image that is forming from the model's own features, and steers by "
                "it: to depth that is consistent, plausible, or like a depth map of yours. Put it between "
                "the model and the sampler."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to guide, after its LoRAs."),
                DEPTH_HEAD.Input(
                    "depth_head",
                    tooltip="What reads the depth. It must have been made for this model family.",
                ),
                strength(
                    "consistency_scale",
                    "How strongly to make the depth agree with itself, as it is read from many and from few "
                    "of the model's blocks (DCG). Higher steers more; 0 switches it off, at no cost.",
                    default=0.5,
                ),
                strength(
                    "prior_scale",
                    "How strongly to make the depth plausible, in the eyes of the depth prior (DPG). Acts "
                    "only where depth_prior is connected. Higher steers more; 0 switches it off, at no cost.",
                    default=0.5,
                ),
                strength(
                    "target_scale",
                    "How strongly to draw the depth to target_depth. Acts only where that is connected. "
                    "Higher follows it more closely, too high harms textures; 0 switches it off, at no cost.",
                    default=1.0,
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip=(
                        "robust: a strength means the same with every sampler, scheduler and number of "
                        "steps. paper: the published rule, which wants an ancestral sampler and many steps, "
                        "and where 1 is the published weight of 40."
                    ),
                ),
                percent(
                    "start_percent",
                    0.0,
                    "Where in the sampling guidance begins. Higher leaves the composition alone.",
                ),
                percent(
                    "end_percent",
                    1.0,
                    "Where in the sampling guidance ends. Lower saves time and leaves details alone; higher "
                    "guides them too, by ever smaller steps.",
                ),
                io.Int.Input(
                    "every_n_steps",
                    default=1,
                    min=1,
                    max=100,
                    tooltip=(
                        "A guided step needs a backward pass. Higher values do that only at every n-th step "
                        "and steer in the last direction in between: faster, less exact."
                    ),
                    extra_dict=ADVANCED,
                ),
                DEPTH_PRIOR.Input(
                    "depth_prior",
                    optional=True,
                    tooltip="What knows plausible depth maps, for prior_scale.",
                ),
                io.Image.Input(
                    "target_depth",
                    optional=True,
                    tooltip=(
                        "A depth map to steer to, near = white, such as depth ControlNets take. Its contrast "
                        "and brightness are fitted to the image; a batch serves the images of a batch."
                    ),
                ),
                io.Mask.Input(
                    "target_mask",
                    optional=True,
                    tooltip="Where target_depth counts: white fully, black not at all. None is everywhere.",
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=False,
                    optional=True,
                    tooltip=(
                        "On: blocks are computed a second time in the backward pass, which needs much less "
                        "memory and some more time. The image is the same."
                    ),
                    extra_dict=ADVANCED,
                ),
                percent(
                    "self_start_percent",
                    SELF_START,
                    "Where in the sampling consistency and prior begin, if later than start_percent; in the "
                    "robust mode only. Lower lets them change the composition too, mostly to emptier scenes; "
                    "higher leaves more of it alone.",
                    optional=True,
                    extra_dict=ADVANCED,
                ),
                percent(
                    "target_end_percent",
                    TARGET_END,
                    "Where in the sampling the target ends, if earlier than end_percent; in the robust mode "
                    "only. Higher meets it more closely, but what it asks of a finished composition becomes "
                    "blotches; lower is faster and leaves more freedom.",
                    optional=True,
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
        cls,
        model: Any,
        depth_head: HostedDepthHead,
        depth_prior: DepthPrior | None = None,
        target_depth: torch.Tensor | None = None,
        target_mask: torch.Tensor | None = None,
        checkpointing: bool = False,
        self_start_percent: float = SELF_START,
        target_end_percent: float = TARGET_END,
        **settings: Any,
    ) -> io.NodeOutput:
        """Check the head against the model and attach the guidance to a clone of it."""
        require_head_fits(depth_head.head, model)
        guidance = DepthAwareGuidance(
            DepthAwareSettings(
                head=depth_head,
                prior=depth_prior,
                target=None if target_depth is None else depth_maps(target_depth),
                target_mask=None
                if target_mask is None
                else target_mask.reshape(-1, 1, *target_mask.shape[-2:]),
                checkpointing=checkpointing,
                self_start_percent=self_start_percent,
                target_end_percent=target_end_percent,
                preview_node=executing().node_id,
                **settings,
            )
        )
        return io.NodeOutput(attach(model, guidance) if guidance.settings.acts else model.clone())


def strength(name: str, tooltip: str, default: float) -> io.Float.Input:
    """The input of a loss's strength."""
    return io.Float.Input(name, default=default, min=0.0, max=STRONGEST, step=0.01, tooltip=tooltip)
