"""Installs the Chromium that the browser tests drive, if no password is needed: `make test`."""

from __future__ import annotations

import os
import shutil
import subprocess

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTALL = (("apt-get", "update", "-qq"), ("apt-get", "install", "-y", "-qq", "chromium"))


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def install_chromium() -> bool:
    """Whether there is one now. It is a package of Debian's, and root may install it."""
    if not (shutil.which("apt-get") and os.geteuid() == 0):
        return False
    print("Installing Chromium for the browser tests ...", flush=True)
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in INSTALL:
        if subprocess.run(command, stdout=subprocess.DEVNULL, env=environ, check=False).returncode != 0:
            return False
    return find_chromium() is not None


if __name__ == "__main__" and not (find_chromium() or install_chromium()):
    print("There is no Chromium, so the browser tests are skipped: install chromium to run them.")
