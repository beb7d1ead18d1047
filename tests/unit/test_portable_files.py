"""Files that a checkout has on every system: their names, and the encoding in which code reads text."""

import ast
import re
import subprocess
from pathlib import PurePosixPath

import pytest

RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)
TEXT_FUNCTIONS = {"read_text", "write_text", "open"}


@pytest.fixture(scope="module")
def tracked(root):
    """The files of the repository, relative to it; `git` says so."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout
    return [PurePosixPath(name) for name in listed.decode("utf-8").split("\0") if name]


def test_windows_can_hold_every_name(tracked):
    for path in tracked:
        for part in path.parts:
            assert not RESERVED.fullmatch(part)
            assert not re.search(r'[<>:"\\|?*\x00-\x1f]|[. ]$', part)
        assert len(str(path)) < 150


def test_no_two_names_differ_in_case_alone(tracked):
    assert len({str(path).casefold() for path in tracked}) == len(tracked)


def test_text_is_read_and_written_in_utf_8(root, tracked):
    """Without an encoding, Python takes the system's: cp1252 on many a Windows."""
    for path in tracked:
        if path.suffix == ".py":
            found = list(without_encoding((root / path).read_text(encoding="utf-8")))
            assert found == [], path


def without_encoding(source):
    """The calls in a source that open text and do not say in which encoding."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        module = getattr(getattr(call.func, "value", None), "id", "")
        if name not in TEXT_FUNCTIONS or module in ("Image", "tarfile", "os", "webbrowser", "io"):
            continue
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        modes = [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        binary = any(re.fullmatch(r"[rwxa+]*b[rwxa+]*", mode) for mode in modes)
        if not binary and all(keyword.arg != "encoding" for keyword in call.keywords):
            yield ast.unparse(call)


@pytest.mark.parametrize("call", ["path.read_text()", "open(path)", "open(path, 'w')"])
def test_calls_without_an_encoding_are_found(call):
    assert list(without_encoding(call)) == [call]


@pytest.mark.parametrize("call", ["open(path, 'rb')", "path.open(encoding='utf-8')", "Image.open(file)"])
def test_other_calls_are_not(call):
    assert list(without_encoding(call)) == []
