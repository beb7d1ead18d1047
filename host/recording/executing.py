"""The node that the host is executing."""

import logging
from collections.abc import Mapping
from typing import Any

from comfy_execution.utils import get_executing_context

from .records import Execution, Record, Run, is_link, nearest_upstream


def executing() -> Execution:
    """The node call that is running; all fields are None outside a server."""
    return Execution(*(get_executing_context() or ()))


def wired_run(record: Record[Any], hidden: Any, latent: Mapping[str, Any]) -> Run[Any]:
    """The run of a record whose LATENT is wired into the input `latent` of the node that is executing.

    hidden: that of the node class, with unique_id and dynprompt. latent: the LATENT. Raises ValueError as
    Record.run_for does.
    """
    dynprompt = getattr(hidden, "dynprompt", None)
    get_node = dynprompt.get_node if dynprompt is not None else None
    node_id = getattr(hidden, "unique_id", None)
    run = record.run_for(node_id, get_node, executing().list_index, latent["samples"])
    link: Any = get_node(node_id)["inputs"].get("latent") if get_node and node_id else None
    known = run.gave(latent["samples"])
    if not known and get_node and is_link(link) and not nearest_upstream(link, get_node, [run]):
        logging.warning(
            "%s: the LATENT comes from no sampler that was recorded, so what is shown may be of an earlier "
            "run. Connect the LATENT of the sampler that gets this node's MODEL.",
            record.title,
        )
    return run
