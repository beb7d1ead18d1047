"""comfy-import-guard finds what a host lacks; for the hosts of the set-up, `make lint` runs it."""

import pytest

from inner_guidance.tools import import_check
from inner_guidance.tools.setup_host import SetupError


def test_what_a_host_lacks_is_found(tmp_path, monkeypatch):
    host, pack = tmp_path / "host", tmp_path / "pack"
    (host / "comfy").mkdir(parents=True)
    (host / "comfy" / "samplers.py").write_text("def calculate_sigmas(steps): ...", encoding="utf-8")
    for folder in import_check.FOLDERS:
        (pack / folder).mkdir(parents=True)
    source = "import comfy.samplers\ncomfy.samplers.calculate_sigmas(1, 2)\ncomfy.samplers.KSampler()\n"
    (pack / "host" / "schedule.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(import_check, "ROOT", pack)

    found = import_check.missing(host, tmp_path / "work")

    assert {name: place.split()[0] for name, place in found.items()} == {
        "comfy.samplers.calculate_sigmas": "host/schedule.py:2:",
        "comfy.samplers.KSampler": "host/schedule.py:3:",
    }


def test_a_pack_that_could_not_be_read_does_not_pass(tmp_path, monkeypatch):
    for folder in import_check.FOLDERS:
        (tmp_path / "pack" / folder).mkdir(parents=True)
    monkeypatch.setattr(import_check, "ROOT", tmp_path / "pack")
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "main.py").touch()

    with pytest.raises(SetupError, match="could not read the pack"):
        import_check.missing(tmp_path / "host", tmp_path / "work")


def test_a_missing_git_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")

    with pytest.raises(SetupError, match=r"There is no git, .* install it"):
        import_check.missing(tmp_path, tmp_path / "work")
