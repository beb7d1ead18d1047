"""The set-up's faults, each one sentence that says what to do; and nothing is left half done."""

import hashlib
import io
import shutil
import subprocess
import tarfile
from collections import namedtuple
from pathlib import Path

import pytest

from inner_guidance.tools import older_hosts, setup_host
from inner_guidance.tools.setup_host import HostArchive, SetupError


@pytest.fixture
def archive_file(tmp_path: Path) -> Path:
    """A source distribution with a three-file host in it, and a file that is none of the host."""
    path = tmp_path / "carrier-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("vendor/ComfyUI/main.py", "vendor/ComfyUI/comfyui_version.py", "setup.py"):
            add(tar, f"carrier-1.0/{name}", b"pass")
        add(tar, "carrier-1.0/vendor/ComfyUI/requirements.txt", b"torch\nnumpy>=1.25.0\n")
    return path


def add(tar: tarfile.TarFile, name: str, contents: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(contents)
    tar.addfile(member, io.BytesIO(contents))


def archive_of(path: Path) -> HostArchive:
    return HostArchive("carrier", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), ".host")


def test_wrong_comfyui_path(tmp_path):
    with pytest.raises(SetupError, match=r"COMFYUI_PATH is .*name the folder that holds ComfyUI's main\.py"):
        setup_host.set_up(tmp_path, {"COMFYUI_PATH": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


def test_own_host_is_used_where_comfyui_path_points(tmp_path, archive_file):
    setup_host.unpack_host(archive_file, archive_of(archive_file), tmp_path)

    assert setup_host.host_folder(tmp_path, {"COMFYUI_PATH": str(tmp_path / ".host")}) == tmp_path / ".host"


def test_missing_host_names_the_command(tmp_path):
    with pytest.raises(SetupError, match="run `make setup`"):
        setup_host.host_folder(tmp_path, {})


def test_old_python():
    setup_host.check_python((3, 10, 0))
    with pytest.raises(SetupError, match=r"Python 3\.9 is too old: install 3\.10 or newer"):
        setup_host.check_python((3, 9, 18))


def test_full_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10e9, 8.5e9, 1.5e9))

    with pytest.raises(SetupError, match=r"needs about 4 GB .* 1\.5 GB are free: make room"):
        setup_host.set_up(tmp_path, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pip_says", "user_reads"),
    [
        ("ERROR: Could not find a version that satisfies torch==2.13.0 (from versions: none)", "network"),
        ("Retrying after connection broken by 'NewConnectionError'", "network"),
        ("pip._vendor.urllib3.exceptions.ReadTimeoutError: Read timed out.", "network"),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "disk is full",
        ),
        ("error: subprocess-exited-with-error", "mend what it says above"),
    ],
)
def test_pip_failures_are_told_apart(tmp_path, monkeypatch, capfd, pip_says, user_reads):
    failed = subprocess.CompletedProcess([], returncode=1, stdout=pip_says)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)

    with pytest.raises(SetupError, match=user_reads) as error:
        setup_host.pip(tmp_path, "install", "torch")

    assert "run `make setup` again" in str(error.value)
    assert pip_says in capfd.readouterr().err


def test_missing_venv_module(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], returncode=1, stdout="ensurepip is not available", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)

    with pytest.raises(SetupError, match="python3-venv"):
        setup_host.make_venv(tmp_path)


@pytest.mark.parametrize("left", [None, "#!/bin/sh\nexit 1\n"])
def test_finished_venv_is_made_anew_when_its_python_is_gone(tmp_path, archive_file, monkeypatch, left):
    """An update replaced the Python that it was made with: there is none, or one without its packages."""
    setup_host.unpack_host(archive_file, archive_of(archive_file), tmp_path)
    python = setup_host.venv_python(tmp_path)
    python.parent.mkdir(parents=True)
    if left:
        python.write_text(left, encoding="utf-8")
        python.chmod(0o755)
    else:
        python.symlink_to(tmp_path / "gone")
    stamp = tmp_path / ".venv" / setup_host.STAMP
    installed = [setup_host.TORCH, *setup_host.TORCH_COMPANIONS, *setup_host.OURS, "numpy>=1.25.0"]
    stamp.write_text("\n".join(installed), encoding="utf-8")
    calls = []
    monkeypatch.setattr(setup_host, "make_venv", lambda _: (calls.append("venv"), stamp.unlink()))
    monkeypatch.setattr(setup_host, "pip", lambda _, *arguments: calls.append(arguments[0]))
    monkeypatch.setattr(setup_host, "silence_torchaudio", lambda _: None)
    monkeypatch.setattr(setup_host, "fetch_host", lambda *_: None)

    setup_host.set_up(tmp_path, {"COMFYUI_PATH": str(tmp_path / ".host")})

    assert calls == ["venv", "install", "install", "install"]


def test_hosts_without_git_ask_for_one_by_name(monkeypatch):
    monkeypatch.setenv("PATH", "")

    with pytest.raises(SetupError, match=r"without git: name one, as in `make hosts HOST=0\.27\.0`"):
        older_hosts.host_of_commit()


def test_wrong_hash_unpacks_nothing(tmp_path, archive_file):
    archive = HostArchive("carrier", "1.0", "0" * 64, ".host")

    with pytest.raises(
        SetupError, match=r"carrier-1\.0\.tar\.gz .* 000000000000\.\.\.: run `make setup` again"
    ):
        setup_host.unpack_host(archive_file, archive, tmp_path)
    assert list(tmp_path.iterdir()) == [archive_file]


def test_unpacks_the_host_alone(tmp_path, archive_file):
    setup_host.unpack_host(archive_file, archive_of(archive_file), tmp_path)

    names = {path.name for path in (tmp_path / ".host").iterdir()}
    assert names == {"main.py", "comfyui_version.py", "requirements.txt", setup_host.STAMP}
    assert setup_host.is_stamped(tmp_path / ".host", archive_of(archive_file).sha256)


def test_interrupted_unpacking_leaves_the_old_host_and_is_made_good(tmp_path, archive_file, monkeypatch):
    (tmp_path / ".host").mkdir()
    (tmp_path / ".host" / setup_host.STAMP).write_text("an older archive", encoding="utf-8")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", interrupt)
        with pytest.raises(KeyboardInterrupt):
            setup_host.unpack_host(archive_file, archive_of(archive_file), tmp_path)
    assert [path.name for path in (tmp_path / ".host").iterdir()] == [setup_host.STAMP]

    setup_host.unpack_host(archive_file, archive_of(archive_file), tmp_path)
    assert (tmp_path / ".host" / "main.py").read_text(encoding="utf-8") == "pass"
    assert not (tmp_path / ".host.part").exists()


def test_finished_host_is_not_fetched_again(tmp_path, archive_file, monkeypatch):
    archive = archive_of(archive_file)
    setup_host.unpack_host(archive_file, archive, tmp_path)
    monkeypatch.setattr(setup_host, "pip", lambda *_: pytest.fail("pip was called"))

    setup_host.fetch_host(archive, tmp_path)


def test_a_tree_of_the_users_own_is_not_replaced(tmp_path, archive_file):
    (tmp_path / ".host").mkdir()
    (tmp_path / ".host" / "main.py").write_text("mine", encoding="utf-8")

    with pytest.raises(SetupError, match="set COMFYUI_PATH to it"):
        setup_host.fetch_host(archive_of(archive_file), tmp_path)
    assert (tmp_path / ".host" / "main.py").read_text(encoding="utf-8") == "mine"


def test_torch_and_media_lines_are_left_out(tmp_path):
    (tmp_path / "requirements.txt").write_text(
        "comfyui-frontend-package==1.47.12\ncomfyui-workflow-templates==0.11.27\ntorch\ntorchsde\n"
        "torchvision\ntorchaudio\nnumpy>=1.25.0 # arrays\n\n#non essential dependencies:\nspandrel\n",
        encoding="utf-8",
    )

    assert setup_host.host_requirements(tmp_path) == [
        "comfyui-frontend-package==1.47.12",
        "torchsde",
        "numpy>=1.25.0",
        "spandrel",
    ]


def test_packages_are_installed_once_and_again_for_another_host(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(setup_host, "pip", lambda _, *arguments: calls.append(arguments))
    monkeypatch.setattr(setup_host, "silence_torchaudio", lambda _: None)
    (tmp_path / ".venv").mkdir()
    (tmp_path / "requirements.txt").write_text("numpy>=1.25.0\n", encoding="utf-8")

    setup_host.install_packages(tmp_path, tmp_path)
    assert len(calls) == 3
    assert all(setup_host.TORCH in call for call in (calls[0], calls[2]))

    setup_host.install_packages(tmp_path, tmp_path)
    assert len(calls) == 3

    (tmp_path / "requirements.txt").write_text("numpy>=1.26.0\n", encoding="utf-8")
    setup_host.install_packages(tmp_path, tmp_path)
    assert len(calls) == 6


def test_interrupted_installation_is_not_taken_for_finished(tmp_path, monkeypatch):
    def fail(*_):
        raise SetupError("no network")

    monkeypatch.setattr(setup_host, "pip", fail)
    (tmp_path / ".venv").mkdir()
    (tmp_path / "requirements.txt").write_text("numpy\n", encoding="utf-8")

    with pytest.raises(SetupError):
        setup_host.install_packages(tmp_path, tmp_path)
    assert not (tmp_path / ".venv" / setup_host.STAMP).exists()
