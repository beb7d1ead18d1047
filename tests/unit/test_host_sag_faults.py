"""docs/host_sag_faults.md: every fault has its test, and every test of a fault stands in the list."""

import re


def test_the_list_and_the_tests_agree(root):
    listed = re.findall(
        r"^\| (\d+) \| .+ \| `(\w+)` \|$",
        (root / "docs" / "host_sag_faults.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    files = sorted((root / "tests" / "host").glob("test_sag_faults_*.py"))
    written = [
        name
        for path in files
        for name in re.findall(r"^def (test_fault_\w+)\(", path.read_text(encoding="utf-8"), re.M)
    ]

    assert [int(number) for number, _ in listed] == list(range(1, 26))
    assert [name for _, name in listed] == sorted(written)
    for number, name in listed:
        assert name.startswith(f"test_fault_{int(number):02}_")
