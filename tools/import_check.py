"""Runs comfy-import-guard: does ComfyUI have what the pack imports of it, and do its calls fit?

The guard reads ComfyUI from a git repository. Here that is a temporary one with the tree of a host that `make
setup` fetched, the newest and the oldest; nothing is downloaded.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .setup_host import OLDEST_HOST, ROOT, SetupError, host_folder

FOLDERS = ("host", "nodes", "demo")  # of those in the archive, the ones that import comfy
# Missing in 0.9.2: what the code asks for with hasattr, and a module that the tree fetched here lacks.
NOT_IN_OLDEST = frozenset(
    {
        "comfy.model_management.in_training",
        "comfy.model_management.is_oom",
        "comfy.ldm.models.autoencoder.AutoencoderKL",
    }
)


def git(repository: Path, *arguments: str) -> None:
    """Run git there, without the user's settings. Raises SetupError where there is none."""
    if shutil.which("git") is None:
        raise SetupError("There is no git, which comfy-import-guard needs: install it.")
    settings = dict.fromkeys(("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"), os.devnull)
    author = ("-c", "user.name=check", "-c", "user.email=check@localhost")
    subprocess.run(
        ["git", *author, *arguments],
        cwd=repository,
        check=True,
        capture_output=True,
        env=os.environ | settings,
    )


def missing(host: Path, work: Path) -> dict[str, str]:
    """What the pack uses of `comfy` and this host lacks, a line for each name: where, and why if it is there.

    work: an empty folder for the guard.
    """
    repository, pack = work / "ComfyUI", work / "custom_nodes" / "inner-guidance"
    repository.mkdir(parents=True)
    git(repository, "init", "--quiet")
    git(repository, f"--work-tree={host}", "add", "--force", "--", "*.py")
    git(repository, "commit", "--quiet", "--message=host")
    for name in FOLDERS:
        shutil.copytree(
            ROOT / name, pack / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
        )
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from comfy_import_guard.cli import main; sys.exit(main())",
            "check",
            "--offline",
            "--no-update",
            "--quiet",
            "--json",
            "--target=HEAD",
            f"--comfy-dir={work}",
            f"--cache-dir={work}",
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=False,  # 1 where something is missing
    )
    (report,) = json.loads(result.stdout)["packs"]
    if report["unparseable"] or not report["references"]:
        raise SetupError("comfy-import-guard could not read the pack.")
    return {
        found["dotted"]: f"{found['file']}:{found['line']}: {found['dotted']} {found['detail']}".rstrip()
        for found in report["breaking"] + report["signature_drift"]
    }


def main() -> int:
    """Print what is missing; 1 if anything is that should be there."""
    hosts = {host_folder(): frozenset(), ROOT / OLDEST_HOST.folder: NOT_IN_OLDEST}
    code = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (host, expected) in enumerate(hosts.items()):
            for name, where in missing(host, Path(folder, str(number))).items():
                if name not in expected:
                    print(f"{where} does not fit {host.name}")
                    code = 1
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SetupError as error:
        sys.exit(f"make lint: {error}")
