"""Runs the host's main.py as `python main.py` would, on machines where torchvision does not import plainly.

    python tools/launch_host.py HOST_FOLDER [ARGUMENTS OF main.py ...]

Ends with the process that started it: when the other end of its standard input is gone, so is the server.
"""

import os
import runpy
import sys
import threading

from torchvision_shim import import_torchvision  # type: ignore[import-not-found]  # run as a script


def end_with_parent() -> None:
    """Wait for the end of standard input, then leave at once."""
    while os.read(0, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    host = sys.argv[1]
    main = os.path.join(host, "main.py")
    sys.argv[:] = [main, *sys.argv[2:]]
    sys.path[0] = host
    threading.Thread(target=end_with_parent, daemon=True).start()
    import_torchvision()
    runpy.run_path(main, run_name="__main__")
