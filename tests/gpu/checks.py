"""The checks of `make gpu-check` in a running server: each returns what it measured or raises CheckError."""

from collections.abc import Iterable, Mapping

import torch

from inner_guidance.tests.gpu.comparison import deviation
from inner_guidance.tests.gpu.launches import Launch, precision
from inner_guidance.tests.gpu.prompts import compiled
from inner_guidance.tests.gpu.tolerances import TOLERANCES
from inner_guidance.tools.host_server import HostServer, Prompt
from inner_guidance.tools.template_runs import TemplateRun, run_with_twins


class CheckError(Exception):
    """A result that is not what it should be. The message says how far it is from it."""


def like_the_cpu(server: HostServer, launch: Launch, prompt: Prompt, reference: TemplateRun) -> str:
    """Run a workflow and compare it with the CPU's run."""
    if launch.compiled:  # what is recorded is compiled in another way, so it may differ in rounding
        found = run_with_twins(server, prompt, compiled)
    else:
        found = run_with_twins(server, prompt)
        found.require_sound()
    of = precision(server.log.read_text(encoding="utf-8", errors="replace"))
    far = deviation(found, reference)
    # On CUDA, PyTorch convolves float32 as TF32, which has as many digits as float16.
    tf32 = of == "float32" and server.stats()["devices"][0]["type"] == "cuda"
    if beyond := far.exceeds(TOLERANCES["float16" if tf32 else of]):
        raise CheckError(f"{of}: {far}; beyond the tolerance: {', '.join(beyond)}")
    return f"{of}: {far}"


def twice_the_same(server: HostServer, prompt: Prompt) -> str:
    """Run a workflow twice in a server that keeps no results."""
    one, other = (run_with_twins(server, prompt) for _ in range(2))
    different = [name for name in one.latents if not torch.equal(one.latents[name], other.latents[name])]
    if different:
        far = max(deviation(one, other).guidance or 0.0, deviation(one, other).plain or 0.0)
        raise CheckError(f"{len(different)} of {len(one.latents)} latents differ, by up to {far:.1e}")
    return f"{len(one.latents)} latents bit for bit"


def memory_growth(server: HostServer, prompts: Iterable[Prompt], settled: int) -> int:
    """Bytes that the device holds after the last prompt, above those after the first `settled` ones."""
    held = []
    for prompt in prompts:
        server.run(prompt)
        held.append(held_bytes(server.stats()["devices"][0]))
    return held[-1] - held[settled - 1]


def held_bytes(device: Mapping[str, int]) -> int:
    """Bytes of the tensors on a device, from the server's /system_stats."""
    return device["torch_vram_total"] - device["torch_vram_free"]
