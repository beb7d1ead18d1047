"""The host in this process."""

from inner_guidance.tests.support.host_in_process import cancel, inference_mode, unloaded

__all__ = ["cancel", "inference_mode", "unloaded"]
