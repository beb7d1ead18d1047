"""Files that may end the process or take its memory are loaded in one of their own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def loaded_elsewhere(path, before=""):
    """Loads a file in a process of its own: (what it said, by how many MB that raised the peak memory)."""
    program = f"""
import importlib.util, resource, sys, threading, time
from pathlib import Path
spec = importlib.util.spec_from_file_location(
    "inner_guidance", {str(ROOT / "__init__.py")!r}, submodule_search_locations=[{str(ROOT)!r}]
)
sys.modules["inner_guidance"] = importlib.util.module_from_spec(spec)
from inner_guidance.depth_head.head_files import load_depth_head
path = Path({str(path)!r})
{before}
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
started = peak()
try:
    load_depth_head(path)
    said = "loaded"
except ValueError as error:
    said = str(error)
print(said, peak() - started, sep="|")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    said, megabytes = run.stdout.rsplit("|", 1)
    return said, float(megabytes)
