"""The Depth-Aware Guidance node."""

import logging
from typing import Any

import torch
from comfy_api.latest import io

from ..depth_head.depth_maps import read_target_depth, read_target_mask
from ..depth_head.head import DepthHead
from ..depth_head.prior import DepthPrior
from ..host.depth.calibration import prior_levels
from ..host.depth.heads import HostedDepthHead, reads_latents, require_head_fits
from ..host.keys import attach
from ..host.recording.executing import executing
from ..host.steering.dag_losses import MODES, PAPER, ROBUST, DepthAwareSettings
from ..host.steering.dag_run import DepthAwareGuidance
from .depth_aware_checks import STRENGTHS, uncalibrated, without_effect
from .schema import ADVANCED, DEPTH_HEAD, DEPTH_PRIOR, percent, search_aliases

STRONGEST = 10.0
WIDEST_BLUR = 0.25
SELF_START = TARGET_END = 0.6


class InnerDepthAwareGuidance(io.ComfyNode):
    """Attaches Depth-Aware Guidance (arXiv:2212.08861) to a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs. Shared workflow files depend on them: add with a default, never rename."""
        return io.Schema(
            node_id="InnerDepthAwareGuidance",
            not_idempotent=True,  # a copy has a preview of its own
            display_name="Depth-Aware Guidance (DAG)",
            **search_aliases(
                "DAG", "depth guidance", "depth control", "depth lock", "depth map", "readout guidance"
            ),
            category="model/patch/unet",
            description=(
                "Reads depth from the model's own features, or from its current estimate of the finished "
                "latent, while the image forms, and steers towards depth that is consistent, plausible, or "
                "close to a depth map that you provide. Connect it between the model and the sampler."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to guide, after its LoRAs."),
                DEPTH_HEAD.Input(
                    "depth_head",
                    tooltip=(
                        "The network that reads depth. It must have been trained for this model family, or, "
                        "if it is a latent head, for this VAE. A latent head reads the model's current "
                        "estimate of the finished latent instead of features: it works with every model and "
                        "costs next to nothing, but consistency_scale has no effect."
                    ),
                ),
                strength(
                    "consistency_scale",
                    "How strongly to make the depth self-consistent: the depth read from a few of the "
                    "model's blocks should match the depth read from many. Higher values steer more; "
                    "0 turns it off at no cost. No effect with a latent head.",
                ),
                strength(
                    "prior_scale",
                    "How strongly to make the depth plausible, as judged by the depth prior. Has an "
                    "effect only if depth_prior is connected. Higher values steer more; 0 turns it off at "
                    "no cost.",
                ),
                strength(
                    "target_scale",
                    "How strongly to pull the depth towards target_depth. Has an effect only if "
                    "target_depth is connected. Higher values follow it more closely, but too high a value "
                    "damages textures; 0 turns it off at no cost.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip=(
                        "robust: the same strength means the same with every sampler, scheduler and number "
                        "of steps. paper: the published rule, which needs an ancestral sampler and many "
                        "steps, and a depth head that reads features; there, a strength of 1 is the "
                        "paper's guidance weight of 40."
                    ),
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
                    "and leave details alone; higher values guide details too.",
                ),
                io.Int.Input(
                    "every_n_steps",
                    default=1,
                    min=1,
                    max=100,
                    tooltip=(
                        "A guided step needs a backward pass: through the model, or through a latent head "
                        "alone. Higher values run it only at every n-th step "
                        "and reuse the last direction in between: faster, but less exact."
                    ),
                    extra_dict=ADVANCED,
                ),
                DEPTH_PRIOR.Input(
                    "depth_prior",
                    optional=True,
                    tooltip="The network that knows plausible depth maps. Needed only for prior_scale.",
                ),
                io.Image.Input(
                    "target_depth",
                    optional=True,
                    tooltip=(
                        "A depth map to steer towards, near = white, as for depth ControlNets. Its contrast "
                        "and brightness are fitted to the image. A batch of maps is matched to the batch of "
                        "images in order."
                    ),
                ),
                io.Mask.Input(
                    "target_mask",
                    optional=True,
                    tooltip=(
                        "Where target_depth applies: fully in white areas, not at all in black ones. Leave "
                        "unconnected to use the whole image."
                    ),
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=False,
                    optional=True,
                    tooltip=(
                        "On: compute blocks a second time in the backward pass. This needs much less memory "
                        "and takes somewhat longer. The image is the same."
                    ),
                    extra_dict=ADVANCED,
                ),
                percent(
                    "self_start_percent",
                    SELF_START,
                    "The point in the sampling at which consistency and prior start, if it is later than "
                    "start_percent. Robust mode only. Lower values let them change the composition too, "
                    "mostly towards emptier scenes; higher values leave more of it alone.",
                    optional=True,
                    extra_dict=ADVANCED,
                ),
                percent(
                    "target_end_percent",
                    TARGET_END,
                    "The point in the sampling at which the target ends, if it is earlier than end_percent. "
                    "Robust mode only. Higher values match the target more closely, but leave blotches once "
                    "the composition is settled; lower values are faster and leave more freedom.",
                    optional=True,
                    extra_dict=ADVANCED,
                ),
                io.Float.Input(
                    "target_blur",
                    default=0.0,
                    min=0.0,
                    max=WIDEST_BLUR,
                    step=0.005,
                    optional=True,
                    tooltip=(
                        "Compares target_depth with the depth of the image through a blur. Its width, a "
                        "share of the shorter side, shrinks to 0 where the target ends. 0.125 keeps more of "
                        "the prompt's objects and follows the map a little less closely; 0 compares sharp "
                        "maps. No gain with a latent head."
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
        depth_head: HostedDepthHead,
        depth_prior: DepthPrior | None = None,
        target_depth: torch.Tensor | None = None,
        target_mask: torch.Tensor | None = None,
        checkpointing: bool = False,
        self_start_percent: float = SELF_START,
        target_end_percent: float = TARGET_END,
        target_blur: float = 0.0,
        **settings: Any,
    ) -> io.NodeOutput:
        """A guided clone of the model. Raises ValueError if the head does not fit the model."""
        require_head_fits(depth_head.head, model)
        if reads_latents(depth_head.head):
            settings |= for_latents(depth_head.head, **settings)
        elif settings["consistency_scale"] != 0 and not depth_head.head.weak_is_trained:
            logging.warning(
                "Depth-Aware Guidance: consistency_scale counts as 0, because the weak branch of %s is not "
                "trained. Set it to 0, or connect a head of Train Depth Head.",
                depth_head.head.name,
            )
            settings["consistency_scale"] = 0.0
        mask = None if target_mask is None else read_target_mask(target_mask, "target_mask")
        calibration = depth_head.head.calibration
        levels = None
        if settings["mode"] == ROBUST and settings["prior_scale"] != 0 and depth_prior and calibration:
            levels = prior_levels(calibration, depth_prior)
        guidance = DepthAwareGuidance(
            DepthAwareSettings(
                head=depth_head,
                prior=depth_prior,
                target=None if target_depth is None else read_target_depth(target_depth, "target_depth"),
                target_mask=mask,
                checkpointing=checkpointing,
                self_start_percent=self_start_percent,
                target_end_percent=target_end_percent,
                target_blur=target_blur,
                preview_node=executing().node_id,
                prior_levels=levels,
                **settings,
            )
        )
        for sentence in without_effect(guidance.settings):
            logging.warning("Depth-Aware Guidance: %s", sentence)
        for sentence in uncalibrated(guidance.settings):
            logging.info("Depth-Aware Guidance: %s", sentence)
        return io.NodeOutput(attach(model, guidance) if guidance.settings.acts else model.clone())


def for_latents(head: DepthHead, mode: str, consistency_scale: float, **settings: Any) -> dict[str, Any]:
    """The settings that a head of latents changes. Raises ValueError for the mode `paper`."""
    if mode == PAPER:
        raise ValueError(
            f"Depth-Aware Guidance: mode '{PAPER}' differentiates the model, but {head.name} reads the clean "
            f"latent alone: choose mode '{ROBUST}', or connect a depth head that reads features."
        )
    if consistency_scale != 0:
        logging.info(
            "Depth-Aware Guidance: consistency needs a depth head that reads features, but %s reads latents: "
            "consistency_scale counts as 0.",
            head.name,
        )
    return {"consistency_scale": 0.0}


def strength(name: str, tooltip: str) -> io.Float.Input:
    """The input for the strength of one loss."""
    return io.Float.Input(name, default=STRENGTHS[name], min=0.0, max=STRONGEST, step=0.01, tooltip=tooltip)
