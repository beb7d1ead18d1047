"""Brings the host's packages into a training script that runs outside the server."""

from __future__ import annotations

import sys

from tools.setup_host import SetupError, host_folder
from tools.torchvision_shim import import_torchvision


def import_host(device: str) -> None:
    """Makes `comfy` importable, with the differentiable attention of torch.

    Must run before anything of `comfy` is imported.

    Raises:
        SystemExit: when there is no host; the sentence says how to get it.
    """
    try:
        sys.path.insert(0, str(host_folder()))
    except SetupError as error:
        raise SystemExit(str(error)) from error
    import_torchvision()

    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = device == "cpu"
    args.use_pytorch_cross_attention = True
