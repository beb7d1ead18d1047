"""The real ComfyUI server with this pack in it, for as long as a `with` block lasts."""

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

import aiohttp

START_SECONDS = 180
STOP_SECONDS = 10
LOG_TAIL_LINES = 25
ON_THE_CPU = ("--cpu",)

Prompt = dict[str, dict[str, Any]]
"""A graph in the host's API format: node id -> class_type, inputs, _meta."""


class HostServerError(Exception):
    """The server did not start or died, or a prompt failed. The message holds the host's own words."""


class HostServer:
    """A server on a free port of this machine, in an empty base directory, with the pack linked into it.

        with HostServer(host_folder(), ROOT, log=Path("server.log")) as server:
            images = server.run(prompt)

    It stops at the end of the block, and also when this process is killed. The log stays.

    host, pack: their folders. log: file that receives everything the server prints. options: of ComfyUI's
    main.py; by default it runs on the CPU.
    """

    def __init__(self, host: Path, pack: Path, log: Path, options: Sequence[str] = ON_THE_CPU) -> None:
        self.host = host
        self.pack = pack
        self.log = log
        self.options = options

    def __enter__(self) -> "HostServer":
        self.base = tempfile.TemporaryDirectory(prefix="inner-guidance-")
        custom_nodes = Path(self.base.name, "custom_nodes")
        custom_nodes.mkdir()
        (custom_nodes / "inner-guidance").symlink_to(self.pack, target_is_directory=True)
        self.port = free_port()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    str(Path(__file__).with_name("launch_host.py")),
                    str(self.host),
                    *self.options,
                    f"--port={self.port}",
                    f"--base-directory={self.base.name}",
                    "--database-url=sqlite:///:memory:",
                    "--disable-api-nodes",
                ],
                cwd=self.base.name,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server and remove its base directory."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.communicate()  # wait, and close the pipe
        self.base.cleanup()

    def wait_until_ready(self) -> None:
        """Return when the server answers. Raises HostServerError when it dies or stays silent."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise HostServerError(f"ComfyUI stopped while starting.\n{self.log_tail()}")
            try:
                self.get("/system_stats")
            except (OSError, HTTPException):
                time.sleep(0.2)
            else:
                return
        raise HostServerError(f"ComfyUI did not answer within {START_SECONDS} seconds.\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines of the log, and where it is."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join([f"The end of {self.log}:", *(f"    {line}" for line in lines)])

    def request(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        """Status and body of one HTTP exchange with the server."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path: str) -> bytes:
        """The body of a GET request. Raises HostServerError unless the answer is 200."""
        status, body = self.request("GET", path)
        if status != 200:
            raise HostServerError(f"ComfyUI answered {status} to {path}.")
        return body

    def queue(self, prompt: Prompt, client: str) -> dict[str, Any]:
        """Submit a prompt; the host's answer has a `prompt_id`, or an `error`, and its `node_errors`."""
        return json.loads(
            self.request("POST", "/prompt", json.dumps({"prompt": prompt, "client_id": client}))[1]
        )

    def object_info(self) -> dict[str, Any]:
        """What the frontend knows of every node: id -> inputs, outputs, tooltips, display name."""
        return json.loads(self.get("/object_info"))

    def stats(self) -> dict[str, Any]:
        """The system and the devices that the server runs on, with their memory."""
        return json.loads(self.get("/system_stats"))

    def run(
        self, prompt: Prompt, on_progress: Callable[[str, int, int], None] = lambda *_: None
    ) -> dict[str, list[bytes]]:
        """Queue a prompt and follow it on the websocket to its end.

        on_progress: called with (node id, steps done, steps in all) whenever a node reports progress. Returns
        the encoded image files that each output node saved or previewed, by node id. Raises HostServerError
        if the host refuses the prompt, a node fails, or the server dies.
        """
        try:
            return asyncio.run(self.follow(prompt, on_progress))
        except (OSError, HTTPException, aiohttp.ClientError) as error:
            raise HostServerError(f"The connection to ComfyUI broke: {error}.\n{self.log_tail()}") from error

    async def follow(
        self, prompt: Prompt, on_progress: Callable[[str, int, int], None]
    ) -> dict[str, list[bytes]]:
        """What `run` does, inside an event loop."""
        client = uuid.uuid4().hex
        address = f"ws://127.0.0.1:{self.port}/ws?clientId={client}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as events:
            queued = self.queue(prompt, client)
            if "prompt_id" not in queued or queued["node_errors"]:
                raise HostServerError(refusal(queued))
            async for message in events:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue  # a preview image
                event = json.loads(message.data)
                data = event["data"]
                if data.get("prompt_id") != queued["prompt_id"]:
                    continue
                if event["type"] == "progress":
                    on_progress(data["node"], data["value"], data["max"])
                elif event["type"] == "execution_error":
                    failed = f"{data['node_type']} (node {data['node_id']})"
                    raise HostServerError(f"{failed} failed: {data['exception_message'].strip()}")
                elif event["type"] == "execution_interrupted":
                    raise HostServerError("The prompt was interrupted.")
                elif event["type"] == "executing" and data["node"] is None:
                    return self.images_of(queued["prompt_id"])
        raise HostServerError(f"ComfyUI closed the connection during the prompt.\n{self.log_tail()}")

    def images_of(self, prompt_id: str) -> dict[str, list[bytes]]:
        """The image files of a finished prompt, by node id."""
        outputs = json.loads(self.get(f"/history/{prompt_id}"))[prompt_id]["outputs"]
        return {
            node: [self.get(f"/view?{urlencode(image)}") for image in output["images"]]
            for node, output in outputs.items()
            if "images" in output
        }


def free_port() -> int:
    """A free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def refusal(answer: dict[str, Any]) -> str:
    """The host's reasons for not running a prompt, one line per fault."""
    faults = [
        f"{node['class_type']} (node {node_id}): {error['message']} ({error['details']})"
        for node_id, node in answer["node_errors"].items()
        for error in node["errors"]
    ]
    reason = answer["error"]["message"] if "error" in answer else "Some outputs are invalid"
    return "\n".join([f"ComfyUI refused the prompt: {reason}", *faults])
