"""The ways to start ComfyUI that are checked."""

import os
from dataclasses import dataclass
from importlib.util import find_spec

from inner_guidance.tests.gpu.tolerances import TOLERANCES


@dataclass(frozen=True)
class Launch:
    """options: of ComfyUI's main.py. weights: the option with which the CPU has the same weights, in float32.

    needs: a package that must be installed. compiled: by torch.compile.
    """

    name: str
    options: tuple[str, ...] = ()
    weights: str = "--fp32-unet"
    needs: str = ""
    compiled: bool = False

    @property
    def lacks(self) -> str:
        """The package that is not installed, or nothing."""
        return self.needs if self.needs and find_spec(self.needs) is None else ""


# GPU_CHECK=cpu: the checks run on the CPU alone, to try them.
TRIED = os.environ.get("GPU_CHECK") == "cpu"
BFLOAT16, FLOAT8 = "--bf16-unet", "--fp8_e4m3fn-unet"
LAUNCHES = (
    Launch("as ComfyUI chooses"),
    Launch("float32", ("--force-fp32",)),
    Launch("float16", ("--fp16-unet",)),
    Launch("bfloat16", (BFLOAT16,), weights=BFLOAT16),
    Launch("float8 weights", (FLOAT8,), weights=FLOAT8),
    Launch("lowvram", ("--disable-dynamic-vram", "--lowvram")),
    Launch("novram, async offload", ("--disable-dynamic-vram", "--novram", "--async-offload")),
    Launch("no async offload", ("--disable-async-offload",)),
    Launch("PyTorch attention", ("--use-pytorch-cross-attention",)),
    Launch("split attention", ("--use-split-cross-attention",)),
    Launch("sub-quadratic attention", ("--use-quad-cross-attention",)),
    Launch("Sage attention", ("--use-sage-attention",), needs="sageattention"),
    Launch("Flash attention", ("--use-flash-attention",), needs="flash_attn"),
    Launch("torch.compile", compiled=True),
)
CPU_LAUNCHES = (
    Launch("as ComfyUI chooses", ("--cpu",)),
    Launch("bfloat16", ("--cpu", BFLOAT16)),
    Launch("float8 weights", ("--cpu", FLOAT8), weights=FLOAT8),
    Launch("PyTorch attention", ("--cpu", "--use-pytorch-cross-attention")),
)


def on_the_cpu(weights: str) -> Launch:
    """The launch that the others with these weights are compared with."""
    return Launch(f"CPU {weights}", ("--cpu", weights))


def precision(log: str) -> str:
    """The key of tolerances.TOLERANCES for the last model that a server's log names.

    Weights in float8 are the reference's too: there it is the type that they are cast to.
    """
    _, _, told = log.rpartition("model weight dtype ")
    types = [part.strip().removeprefix("torch.") for part in told.splitlines()[0].split(", manual cast: ")]
    return max(set(types) & TOLERANCES.keys(), key=list(TOLERANCES).index)
