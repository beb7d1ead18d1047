"""Folders below `models` that the host has no name for."""

import os
from collections.abc import Collection
from pathlib import Path

import folder_paths


def register_model_folder(name: str, extensions: Collection[str]) -> None:
    """models/`name`, as a folder of files with these extensions.

    The host has read the users' extra_model_paths by then: folders that they gave for this name stay, in
    front. They came without extensions, which to the host means every file.
    """
    folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
    folders, _ = folder_paths.folder_names_and_paths[name]
    folder_paths.folder_names_and_paths[name] = (folders, set(extensions))


def file_path(name: str, file: str) -> Path:
    """The file that a loader's list named. Raises ValueError where it is gone."""
    path = folder_paths.get_full_path(name, file)
    if path is None:
        raise ValueError(
            f"There is no file {file} in models/{name}: refresh the list of files (key R) and choose another."
        )
    return Path(path)


def new_file_path(name: str, filename_prefix: str, suffix: str) -> Path:
    """Where a saver writes: numbered as the host numbers its files, in the first folder of this name.

    Raises ValueError where the prefix leads out of it.
    """
    (folder, *_) = (os.path.realpath(path) for path in folder_paths.get_folder_paths(name))
    wanted = os.path.realpath(os.path.join(folder, filename_prefix))
    if not wanted.startswith(folder + os.sep):
        raise ValueError(
            f"filename_prefix '{filename_prefix}' leads out of models/{name}: write a name, or folder/name."
        )
    os.makedirs(folder, exist_ok=True)
    directory, file, counter, *_ = folder_paths.get_save_image_path(filename_prefix, folder)
    return Path(directory, f"{file}_{counter:05}_{suffix}")
