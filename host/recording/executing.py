"""The node that the host is executing."""

from typing import Any

from comfy_execution.utils import get_executing_context

from .records import Execution, Record, Run


def executing() -> Execution:
    """The node call that is running; all fields are None outside a server."""
    return Execution(*(get_executing_context() or ()))


def wired_run(record: Record[Any], hidden: Any) -> Run[Any]:
    """The run of a record whose LATENT is wired into the input `latent` of the node that is executing.

    hidden: that of the node class, with unique_id and dynprompt. Raises ValueError as Record.run_for does.
    """
    dynprompt = getattr(hidden, "dynprompt", None)
    get_node = dynprompt.get_node if dynprompt is not None else None
    return record.run_for(getattr(hidden, "unique_id", None), get_node, executing().list_index)
