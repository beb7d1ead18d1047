"""Runs a developer script of demo/, experiments/ or benchmarks/ with ComfyUI in the same process.

    .venv/bin/python -m tools.run [--device gpu] MODULE [arguments of the module]
    .venv/bin/python -m tools.run demo.train diffusion --minutes 60
    .venv/bin/python -m tools.run demo.train --help

The device comes before the module because ComfyUI chooses it when it is imported, and the module imports
ComfyUI. Modules ask ComfyUI for it.
"""

import argparse
import importlib
import sys

from .in_process import import_host, register_pack
from .setup_host import ROOT, SetupError


def main() -> None:
    """Calls `main()` of the module, with what follows the module's name as the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("module", help="name below the checkout, such as demo.train")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the module takes; see its --help")
    options = parser.parse_args()
    if not ROOT.joinpath(*options.module.split(".")).with_suffix(".py").is_file():
        parser.error(f"There is no module {options.module} in {ROOT}.")

    try:
        launch_options = import_host(options.device)
    except SetupError as error:
        sys.exit(str(error))
    launch_options.use_pytorch_cross_attention = True  # on a CPU too, as on a GPU
    register_pack()
    sys.argv = [f"python -m tools.run {options.module}", *options.arguments]
    importlib.import_module(f"inner_guidance.{options.module}").main()


if __name__ == "__main__":
    main()
