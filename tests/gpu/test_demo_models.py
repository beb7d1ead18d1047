"""The demo models on this device, for each way to start ComfyUI, against the CPU."""

import pytest

from inner_guidance.tests.gpu.checks import CheckError, like_the_cpu, memory_growth, twice_the_same
from inner_guidance.tests.gpu.launches import CPU_LAUNCHES, LAUNCHES, TRIED
from inner_guidance.tests.gpu.prompts import GUIDED, PROMPTS, SAG, with_seed
from inner_guidance.tools.host_server import HostServerError
from inner_guidance.tools.template_runs import shortened

DEVICE_LAUNCHES = CPU_LAUNCHES if TRIED else LAUNCHES
DEFAULT = DEVICE_LAUNCHES[0]
PROMPTS_IN_A_ROW, SETTLED = (4, 2) if TRIED else (200, 20)
MOST_GROWTH = 2**20
# Of the others, the server tells what the whole machine holds.
COUNTED = ("cuda", "xpu")


@pytest.mark.parametrize("launch", DEVICE_LAUNCHES, ids=lambda launch: launch.name)
def test_results_are_the_cpus(launch, started, references, checked, skipped, subtests):
    if launch.lacks:
        skipped(launch.name, "all workflows", f"{launch.lacks} is not installed")
    expected = references(launch.weights)
    try:
        with started(launch) as server:
            for name, prompt in PROMPTS.items():
                with subtests.test(name):
                    checked(launch.name, name, like_the_cpu, server, launch, prompt, expected[name])
    except HostServerError as error:
        skipped(launch.name, "all workflows", f"ComfyUI does not start: {error}")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (SAG, ()),
        # On a GPU, PyTorch's faster backward passes add numbers in any order.
        (GUIDED, ("--deterministic",)),
        (f"{GUIDED}, transformer", ("--deterministic",)),
    ],
)
def test_two_runs_are_bit_identical(name, options, started, checked):
    with started(DEFAULT, "--cache-none", *options) as server:
        checked(" ".join(("two runs", *options)), name, twice_the_same, server, PROMPTS[name])


def test_memory_stays_flat(started, checked):
    prompt = shortened(PROMPTS[GUIDED], {"KSampler": {"steps": 2}})

    def flat(server):
        prompts = (with_seed(prompt, seed) for seed in range(PROMPTS_IN_A_ROW))
        grown = memory_growth(server, prompts, SETTLED)
        told = f"{grown / 2**20:+.1f} MiB from prompt {SETTLED} to prompt {PROMPTS_IN_A_ROW}"
        if grown > MOST_GROWTH and server.stats()["devices"][0]["type"] in COUNTED:
            raise CheckError(told)
        return told

    with started(DEFAULT) as server:
        checked("memory", f"{PROMPTS_IN_A_ROW} prompts, {GUIDED}", flat, server)
