"""The host in this process."""

from inner_guidance.tests.support.host_in_process import inference_mode, unloaded

__all__ = ["inference_mode", "unloaded"]
