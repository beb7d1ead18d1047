"""The node that the host is executing."""

from typing import Any

from comfy_execution.utils import get_executing_context

from .records import Execution, Record, Run


def executing() -> Execution:
    """The call of a node that this is part of; all None outside a server."""
    return Execution(*(get_executing_context() or ()))


def wired_run(record: Record[Any], hidden: Any) -> Run[Any]:
    """The run of a record whose LATENT is wired into the input `latent` of the node that is executing.

    hidden: the node class's own, with unique_id and dynprompt. Raises ValueError: Record.run_for.
    """
    dynprompt = getattr(hidden, "dynprompt", None)
    get_node = dynprompt.get_node if dynprompt is not None else None
    return record.run_for(getattr(hidden, "unique_id", None), get_node, executing().list_index)
