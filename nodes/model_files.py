"""Shared by the Load and Save nodes of heads and depth priors."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..host.depth.model_folders import require_savable


def file_input(folder: str, fits: str) -> io.Combo.Input:
    """The file to load from models/`folder`; `fits` is the sentence that says which models it works with."""
    return io.Combo.Input(
        "name",
        options=folder_paths.get_filename_list(folder),
        tooltip=f"The file to load from models/{folder}. {fits}",
    )


def prefix_input(default: str) -> io.String.Input:
    """The name under which a file is saved, as in the host's own savers."""
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip="The start of the file name. A number is appended, so no file is overwritten. Put a folder "
        f"in front (rooms/{default}) to save into that folder; it is created if it does not exist.",
    )


def savable(folder: str, filename_prefix: str | None) -> bool | str:
    """For validate_inputs of a saver: True, or what its execution would refuse, in a sentence.

    The host asks before it runs anything, so a long training does not end in an error. None: the prefix is an
    output of another node.
    """
    if filename_prefix is not None:
        try:
            require_savable(folder, filename_prefix)
        except ValueError as error:
            return str(error)
    return True


def saved_as(path: Path) -> io.NodeOutput:
    """Shows the name of the new file on the node."""
    return io.NodeOutput(ui=ui.PreviewText(f"Saved as {path.name}"))
