"""Our Self-Attention Guidance and the host's own, for tests of faults that only the host's has."""

import comfy_extras.nodes_sag as host_sag
import pytest

from inner_guidance.tests.support import tiny_models as tiny

BLUR_SIGMA = 1.3  # 9 taps on either node, so that only a fault can tell them apart
SCALE, THRESHOLD = 0.75, 1.0  # the host's node has no other threshold


def ours(model, **settings):
    """The model with our node behind it."""
    settings = {"scale": SCALE, "blur_sigma": BLUR_SIGMA, "threshold": THRESHOLD, "blocks": "m0"} | settings
    return tiny.guided(model, **settings)


def hosts_own(model, scale=SCALE, blur_sigma=BLUR_SIGMA):
    """The model with the host's node behind it."""
    return host_sag.SelfAttentionGuidance.execute(model, scale, blur_sigma).result[0]


def fault(raises):
    """Run the test on our node, and on the host's, where it must fail with this error.

    The second run is slow: it shows that the test finds the fault, and changes only with the host.
    """
    return pytest.mark.parametrize(
        "sag",
        [
            pytest.param(ours, id="ours"),
            pytest.param(
                hosts_own, id="hosts", marks=[pytest.mark.slow, pytest.mark.xfail(raises=raises, strict=True)]
            ),
        ],
    )
