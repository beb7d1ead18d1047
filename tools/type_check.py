"""Runs mypy on the checkout as the package `inner_guidance`, with the host's tree on its path.

mypy takes a package's name from its folder, but a clone may have any name. So mypy runs in a temporary folder
that holds a link to the checkout under the name of the package.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .setup_host import ROOT, SetupError, host_folder

PACKAGE = "inner_guidance"


def type_check() -> int:
    """Print mypy's findings, with paths from the root of the checkout, and return its exit code.

    Raises SetupError when there is no host.
    """
    command = [
        sys.executable,
        "-m",
        "mypy",
        f"--config-file={ROOT / 'pyproject.toml'}",
        f"--cache-dir={ROOT / '.cache' / 'mypy'}",
        f"--package={PACKAGE}",
    ]
    environment = {**os.environ, "MYPYPATH": str(host_folder())}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, PACKAGE).symlink_to(ROOT, target_is_directory=True)
        result = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
    for line in result.stdout.splitlines():
        print(line.removeprefix(f"{PACKAGE}/"))
    return result.returncode


if __name__ == "__main__":
    try:
        sys.exit(type_check())
    except SetupError as error:
        sys.exit(f"make lint: {error}")
