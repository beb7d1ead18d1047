"""The host in this process, and Hypothesis, which tries the same examples every time."""

import hypothesis

from inner_guidance.tests.support.host_in_process import inference_mode, unloaded

__all__ = ["inference_mode", "unloaded"]

hypothesis.settings.register_profile(
    "reproducible",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("reproducible")
