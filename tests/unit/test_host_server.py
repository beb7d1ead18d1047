"""The server's life around a stand-in for the host's main.py: it starts, dies, answers and always ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from inner_guidance.tools.host_server import HostServer, HostServerError

ANSWERS = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/system_stats" else 404)
        self.end_headers()

port = next(int(argument.split("=")[1]) for argument in sys.argv if argument.startswith("--port="))
print("stand-in on", port, flush=True)
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture(autouse=True)
def no_torch(tmp_path, monkeypatch):
    """The stand-in needs neither torch nor torchvision, and importing them takes seconds."""
    for name in ("torch", "torchvision"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def stand_in(folder: Path, source: str) -> Path:
    (folder / "main.py").write_text(source, encoding="utf-8")
    return folder


def test_host_that_dies_while_starting_shows_the_end_of_its_log(tmp_path, root):
    host = stand_in(tmp_path, "print('first words'); raise SystemExit('no such device')")
    server = HostServer(host, root, log=tmp_path / "logs" / "server.log")

    with (
        pytest.raises(HostServerError, match=r"(?s)stopped while starting.*first words.*no such device"),
        server,
    ):
        pytest.fail("the server is not ready")

    assert not Path(server.base.name).exists()


def test_server_and_its_folder_are_gone_after_the_block(tmp_path, root):
    with HostServer(stand_in(tmp_path, ANSWERS), root, log=tmp_path / "server.log") as server:
        link = Path(server.base.name, "custom_nodes", "inner-guidance")
        assert link.resolve() == root
        with pytest.raises(HostServerError, match="answered 404 to /nothing"):
            server.get("/nothing")

    assert server.process.poll() is not None
    assert not Path(server.base.name).exists()
    assert (root / "pyproject.toml").exists()
    assert "stand-in on" in server.log.read_text(encoding="utf-8")


def test_server_that_dies_in_the_middle_shows_the_end_of_its_log(tmp_path, root):
    with HostServer(stand_in(tmp_path, ANSWERS), root, log=tmp_path / "server.log") as server:
        server.process.kill()
        server.process.wait()
        with pytest.raises(HostServerError, match=r"(?s)connection to ComfyUI broke.*stand-in on"):
            server.run({})


def test_host_ends_with_the_process_that_started_it(tmp_path, root):
    host = stand_in(tmp_path, "import time; print('running', flush=True); time.sleep(600)")
    process = subprocess.Popen(
        [sys.executable, root / "tools" / "launch_host.py", host],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "running\n"

    process.stdin.close()

    assert process.wait(timeout=20) == 0
    process.stdout.close()
