"""What `make gpu-check` runs on: a CUDA, ROCm, MPS or XPU device, and the CPU next to it.

GPU_CHECK=cpu lets the checks run on the CPU alone, to try them. CHECKPOINT and DEPTH_MODEL are said in
test_checkpoint.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from inner_guidance.tests.gpu.checks import CheckError
from inner_guidance.tests.gpu.launches import TRIED, Launch, on_the_cpu
from inner_guidance.tests.gpu.prompts import PROMPTS
from inner_guidance.tests.gpu.report import FAILED, PASSED, SKIPPED, Report, Row, commit_of
from inner_guidance.tools.host_server import HostServer, HostServerError
from inner_guidance.tools.template_runs import TemplateRun, TemplateRunError, run_with_twins

FOLDER = Path(".cache", "gpu-check")
REPORT = pytest.StashKey[Report]()
STATS = pytest.StashKey[dict]()
# Their messages say what they are.
EXPECTED = (CheckError, TemplateRunError, HostServerError)

collect_ignore_glob = [] if torch.accelerator.is_available() or TRIED else ["test_*.py"]


def pytest_report_header() -> str | None:
    if collect_ignore_glob:
        return "tests/gpu: there is no CUDA, ROCm, MPS or XPU device, so nothing is collected"
    return None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A machine without a device has done nothing wrong."""
    if collect_ignore_glob and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = Report()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the report, show it and say where it is."""
    report = config.stash[REPORT]
    if STATS not in config.stash:
        return
    path = config.rootpath / FOLDER / "report.md"
    text = report.markdown(config.stash[STATS], commit_of(config.rootpath))
    path.write_text(text, encoding="utf-8")
    terminalreporter.write_line(f"\n{text}\nThis report, to paste into an issue: {path}")


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    return pytestconfig.stash[REPORT]


@pytest.fixture(scope="session")
def folder(root: Path) -> Path:
    """Where logs and pictures go."""
    path = root / FOLDER
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def checked(report: Report) -> Callable:
    """Run a check and add its row, whatever it raises: checked(check, what, function, *arguments)."""

    def run(check: str, what: str, function: Callable[..., str], *arguments: object) -> None:
        try:
            told = function(*arguments)
        except Exception as error:
            said = str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
            report.rows.append(Row(check, what, FAILED, said))
            raise AssertionError(said) from error
        report.rows.append(Row(check, what, PASSED, told))

    return run


@pytest.fixture
def skipped(report: Report) -> Callable[[str, str, str], None]:
    """Skip a test and say so in the report."""

    def skip(check: str, what: str, why: str) -> None:
        report.rows.append(Row(check, what, SKIPPED, why))
        pytest.skip(why)

    return skip


@pytest.fixture(scope="session")
def started(host: Path, root: Path, folder: Path, pytestconfig: pytest.Config) -> Callable:
    """A server, as a launch says, with more options: the context `started(launch, *options)`."""

    @contextmanager
    def start(launch: Launch, *options: str) -> Iterator[HostServer]:
        log = folder / f"{launch.name}.log"
        with HostServer(host, root, log, options=(*launch.options, *options)) as server:
            pytestconfig.stash[STATS] = server.stats()
            yield server

    return start


@pytest.fixture(scope="session")
def references(started: Callable) -> Callable[[str], dict[str, TemplateRun]]:
    """The demo workflows on the CPU, in float32, with the weights that an option of ComfyUI says."""

    @cache
    def run(weights: str) -> dict[str, TemplateRun]:
        with started(on_the_cpu(weights)) as server:
            return {name: run_with_twins(server, prompt) for name, prompt in PROMPTS.items()}

    return run
