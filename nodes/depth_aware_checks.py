"""What Depth-Aware Guidance says of its inputs: which have no effect, and whether the head is calibrated."""

from collections.abc import Iterator

from ..host.steering.dag_losses import ROBUST, DepthAwareSettings

# The defaults.
STRENGTHS = {"consistency_scale": 0.5, "prior_scale": 0.5, "target_scale": 1.0}


def without_effect(settings: DepthAwareSettings) -> Iterator[str]:
    """Sentences on inputs that are set or connected without effect. A strength at its default is not set."""
    if settings.prior is None and settings.prior_scale not in (0, STRENGTHS["prior_scale"]):
        yield "prior_scale has no effect without a prior. Connect depth_prior."
    if settings.target is None and settings.target_scale not in (0, STRENGTHS["target_scale"]):
        yield "target_scale has no effect without a target. Connect target_depth."
    if settings.target is None and settings.target_blur > 0:
        yield "target_blur has no effect without a target. Connect target_depth."
    mask = settings.target_mask
    if mask is not None and settings.target is None:
        yield "target_mask has no effect without a target. Connect target_depth."
    if mask is not None and settings.uses_target and not mask.any():
        yield "target_mask is black, so target_depth has no effect. Paint white where it applies."
    if not any(settings.scales):
        yield "it does nothing, because all strengths are 0. Raise one, or bypass the node."
    elif not settings.acts:
        yield (
            "it does nothing, because no strength above 0 has the input that it needs. Raise "
            "consistency_scale, or connect depth_prior or target_depth."
        )


def uncalibrated(settings: DepthAwareSettings) -> Iterator[str]:
    """A sentence if consistency or prior act and the head does not know real images."""
    acts = {"consistency": settings.consistency_scale != 0, "prior": settings.uses_prior}
    head = settings.head.head
    if settings.mode == ROBUST and head.calibration is None and any(acts.values()):
        losses = " and ".join(name for name in acts if acts[name])
        verb = "steer" if all(acts.values()) else "steers"
        yield (
            f"{head.name} is not calibrated, so {losses} {verb} every image, not only those "
            "that are worse than real ones. Train a new head with Train Depth Head to change that."
        )
