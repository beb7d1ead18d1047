"""experiments/spectrum_figures.py: its figures are the node's, and the resampling tells luck from rule."""

import pytest
import torch

from inner_guidance.experiments.spectrum_figures import Excess, excess, inside, log_magnitudes, table
from inner_guidance.guidance.attention_spectrum import spectra


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [8, 16])
def test_excess_is_that_of_the_node(size):
    pictures, attention = random(12, 64, 64, 3), 2 * random(12, 4, 4, seed=1)
    (expected,) = spectra(pictures, attention, (1.2,), (size,))

    found = excess(log_magnitudes(pictures, size), inside(attention > 1.2, pictures, size))

    assert found.least == pytest.approx(min(expected.excess(1.2)[1:]), abs=1e-5)
    assert found.mean == pytest.approx(sum(expected.excess(1.2)[1:]) / (size // 2), abs=1e-5)


def test_certain_where_every_picture_agrees():
    logs = torch.zeros(20, 4, 4, 3)
    logs[:, 0] = 0.5
    chosen = torch.zeros(20, 4, 4, dtype=torch.bool)
    chosen[:, 0] = True

    found = excess(logs, chosen)

    assert found == (pytest.approx(0.375), pytest.approx(0.375), 1.0)
    assert found.cell == "+137 / +137 (100%)"


def test_uncertain_where_one_picture_decides():
    logs = torch.zeros(20, 4, 4, 3)
    logs[0, 0] = 5.0
    logs[1:, 0] = -0.1
    chosen = torch.zeros(20, 4, 4, dtype=torch.bool)
    chosen[:, 0] = True

    found = excess(logs, chosen)

    assert found.mean > 0
    assert 0.5 < found.certainty < 0.75  # the share of resamplings that have picture 0 at all


def test_without_patches():
    assert excess(torch.zeros(3, 2, 2, 4), torch.zeros(3, 2, 2, dtype=torch.bool)).cell == "no patch"


def test_table_counts_the_cells_in_which_the_claim_holds():
    lines = list(
        table(
            "Title",
            ["area", "8 px"],
            {"m0": ["40%", Excess(0.1, 0.05, 1.0)], "u0": ["1%", Excess(0.1, -0.1, 0.2)]},
        )
    )

    assert lines[2:6] == [
        "| | area | 8 px |",
        "|---|---|---|",
        "| m0 | 40% | +26 / +12 (100%) |",
        "| u0 | 1% | +26 / -21 (20%) |",
    ]
    assert "in 1 of 2 cells, in 1 of them" in lines[-2]
