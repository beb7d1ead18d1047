"""Folders below `models` that the host has no name for."""

import errno
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import folder_paths

from ...depth_head.files import legible, unwritable

# Characters that some system forbids in file names: workflows and models move between systems.
NOWHERE_VALID = re.compile(r'[\x00-\x1f\x7f<>:"|?*\ud800-\udfff]')
DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
# Bytes in UTF-8 of one name. Number and suffix follow it; file systems allow 255.
LONGEST_NAME = 200


def register_model_folder(name: str, extensions: Collection[str]) -> None:
    """models/`name`, as a folder of files with these extensions.

    The host has already read the user's extra_model_paths: folders given there for this name stay, and come
    first. They have no extensions, which to the host means every file.
    """
    folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
    folders, _ = folder_paths.folder_names_and_paths[name]
    folder_paths.folder_names_and_paths[name] = (folders, set(extensions))


def file_path(name: str, file: str) -> Path:
    """The path of a file in a loader's list. Raises ValueError if the file is gone."""
    path = folder_paths.get_full_path(name, file)
    if path is None:
        raise ValueError(
            f"There is no file {legible(file)} in models/{name}: refresh the list of files (key R) and "
            "choose another."
        )
    return Path(path)


def require_savable(name: str, filename_prefix: str) -> None:
    """Raises ValueError for what new_file would refuse, as far as it can be told without writing."""
    folder = os.path.realpath(folder_paths.get_folder_paths(name)[0])
    path = Path(folder, portable(name, folder, filename_prefix))
    there = next(filter(os.path.exists, path.parents), path.parent)
    if not os.path.isdir(there):
        raise unwritable(path, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if not os.access(there, os.W_OK):
        raise unwritable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


@contextmanager
def new_file(name: str, filename_prefix: str, suffix: str) -> Iterator[Path]:
    """A file for a saver to write: numbered as the host numbers its files, in the first folder of this name.

    It is created empty, so that no other saver takes the number, and removed if the saver fails. Raises
    ValueError for a prefix that points outside the folder, a name that some system forbids, and anything that
    this system refuses.
    """
    folder = os.path.realpath(folder_paths.get_folder_paths(name)[0])
    prefix = portable(name, folder, filename_prefix)
    try:
        path = _take_number(folder, prefix, suffix)
    except OSError as error:
        raise unwritable(Path(folder, f"{prefix}{suffix}"), error) from error
    try:
        yield path
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def _take_number(folder: str, prefix: str, suffix: str) -> Path:
    """Create the file with the first free number."""
    os.makedirs(folder, exist_ok=True)
    directory, file, number, *_ = folder_paths.get_save_image_path(prefix, folder)
    while True:
        path = Path(directory, f"{file}_{number:05}_{suffix}")
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return path


def portable(name: str, folder: str, filename_prefix: str) -> str:
    """A prefix with / between folders. Raises ValueError unless it stays in the folder on every system."""
    prefix = filename_prefix.replace("\\", "/")
    said = f"filename_prefix '{legible(filename_prefix)}'"
    if "%date:" in prefix:
        raise ValueError(
            f"{said}: ComfyUI fills in %date:...% for its own save nodes only. Write %year%, %month%, %day%, "
            "%hour%, %minute% or %second%."
        )
    if NOWHERE_VALID.search(prefix):
        raise ValueError(
            f'{said} has a character that file names cannot have on every system, one of < > : " | ? * or a '
            "control character: leave it out."
        )
    if not os.path.realpath(os.path.join(folder, prefix)).startswith(folder + os.sep):
        raise ValueError(f"{said} points outside models/{name}: write a name, or folder/name.")
    for part in prefix.split("/"):
        if part in ("", ".", ".."):
            continue
        if len(part.encode()) > LONGEST_NAME:
            raise ValueError(f"{said} is too long: a name may have {LONGEST_NAME} bytes.")
        if DEVICES.fullmatch(part):
            raise ValueError(f"{said}: '{legible(part)}' is reserved on Windows. Choose another name.")
        if part[-1] in ". ":
            raise ValueError(
                f"{said}: '{legible(part)}' ends in a dot or a space, which Windows does not allow. Choose "
                "another name."
            )
    return prefix
