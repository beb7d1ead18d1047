"""Files that may end the process or take its memory are loaded in one of their own."""

import multiprocessing
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import importlib.util, resource, sys, threading, time
from pathlib import Path
spec = importlib.util.spec_from_file_location(
    "inner_guidance", root + "/__init__.py", submodule_search_locations=[root]
)
sys.modules["inner_guidance"] = importlib.util.module_from_spec(spec)
from inner_guidance.depth_head.head_files import load_depth_head
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
exec(before)
started = peak()
try:
    load_depth_head(path)
    said = "loaded"
except ValueError as error:
    said = str(error)
sender.send((said, peak() - started))
"""


def loaded_elsewhere(path, before=""):
    """Loads a file in a process of its own: (what it said, by how many MB that raised the peak memory).

    Each process is a fork of one that has imported PyTorch, which takes seconds, and nothing else.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "safetensors.torch"])
    receiver, sender = context.Pipe(duplex=False)
    names = {"root": str(ROOT), "path": path, "before": before, "sender": sender}
    process = context.Process(target=exec, args=(PROGRAM, names))
    process.start()
    sender.close()
    process.join()
    assert process.exitcode == 0
    return receiver.recv()
