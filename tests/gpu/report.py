"""The Markdown report of `make gpu-check`, to paste into an issue."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

PASSED, FAILED, SKIPPED = "pass", "**FAIL**", "not run"
UNKNOWN = "of an unknown commit"


class Row(NamedTuple):
    """One check. outcome: PASSED, FAILED or SKIPPED. told: figures, or why."""

    check: str
    what: str
    outcome: str
    told: str


@dataclass
class Report:
    """The rows of the checks, and sections with tables of their own."""

    rows: list[Row] = field(default_factory=list)
    sections: dict[str, str] = field(default_factory=dict)

    def markdown(self, stats: dict[str, Any], commit: str) -> str:
        """The report. stats: what the server's /system_stats says."""
        system, device = stats["system"], stats["devices"][0]
        outcomes = [row.outcome for row in self.rows]
        counts = ", ".join(f"{outcomes.count(o)} {o.strip('*').lower()}" for o in (PASSED, FAILED, SKIPPED))
        lines = [
            f"# Inner Guidance on {device['name']}",
            "",
            f"{counts}. Inner Guidance {commit}, ComfyUI {system['comfyui_version']}, "
            f"PyTorch {system['pytorch_version']}, Python {system['python_version'].split()[0]}, "
            f"{system['os']}, {device['vram_total'] / 2**30:.0f} GiB.",
            "",
            "| check | what | outcome | measured |",
            "|---|---|---|---|",
            *(f"| {' | '.join(one_line(cell) for cell in row)} |" for row in self.rows),
        ]
        for title, text in self.sections.items():
            lines += ["", f"## {title}", "", text.strip()]
        return "\n".join(lines) + "\n"


def commit_of(checkout: Path) -> str:
    """The commit of a checkout; "of an unknown commit" without git, or outside a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return UNKNOWN
    return described.stdout.strip() or UNKNOWN


def one_line(cell: str) -> str:
    """A cell of a Markdown table."""
    return " ".join(cell.split()).replace("|", "\\|")
