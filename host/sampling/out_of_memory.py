"""What to change when a guided step does not fit into memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management


@contextmanager
def out_of_memory_says(advice: str) -> Iterator[None]:
    """Context in which running out of memory raises the host's exception with this sentence.

    The host recognises the failure by the type of the exception, and then unloads its models.
    """
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        raise comfy.model_management.OOM_EXCEPTION(advice) from error


def _is_out_of_memory(error: Exception) -> bool:
    # Not in 0.9.2. It also knows the errors of other accelerators.
    if hasattr(comfy.model_management, "is_oom"):
        return comfy.model_management.is_oom(error)
    return isinstance(error, comfy.model_management.OOM_EXCEPTION)
