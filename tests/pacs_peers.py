"""Peers for tests of the PACS commands: a small C-STORE receiver, a small web server, and a real Orthanc."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

import pytest

HOST = "127.0.0.1"
PLAIN = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until(true: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def tidy_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes servers of pynetdicom end quickly, and close their sockets themselves.

    A socket that the peer closed first is left to the garbage collector otherwise.
    """
    from pynetdicom.transport import AssociationServer, AssociationSocket

    def close(self: Any) -> None:
        with suppress(OSError, AttributeError):
            self.socket.shutdown(socket.SHUT_RDWR)
        with suppress(AttributeError):
            self.socket.close()

    monkeypatch.setattr(AssociationSocket, "_shutdown_socket", close)
    monkeypatch.setattr(AssociationServer, "serve_forever", lambda self: TCPServer.serve_forever(self, 0.02))


# ---- a receiver of our own -------------------------------------------------------------------------------------------


@dataclass
class Peer:
    """What a receiver got; ``answer`` gives the status of each object, or breaks the association (None)."""

    port: int
    answer: Callable[[int], int | None] = lambda _number: 0
    got: list[Any] = field(default_factory=list)
    asked: int = 0
    associations: int = 0

    @property
    def place(self) -> str:
        return f"{HOST}:{self.port}/PEER"


@contextmanager
def receiver(
    answer: Callable[[int], int | None] = lambda _number: 0,
    classes: list[str] | None = None,
    syntaxes: list[str] | None = None,
    allow: list[str] | None = None,
    verification: bool = True,
    tls: Any = None,
    port: int | None = None,
) -> Iterator[Peer]:
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    peer = Peer(port or free_port(), answer)

    def on_store(event: Any) -> int:
        peer.asked += 1
        status = peer.answer(peer.asked)
        if status is None:
            event.assoc.abort()
            return 0xC000
        if status < 0xA000:
            data = event.dataset
            data.file_meta = event.file_meta
            peer.got.append(data)
        return status

    def on_accepted(_event: Any) -> None:
        peer.associations += 1

    entity = AE(ae_title="PEER")
    entity.require_called_aet = True
    entity.require_calling_aet = allow or []
    for sop_class in classes or [context.abstract_syntax for context in AllStoragePresentationContexts]:
        entity.add_supported_context(sop_class, syntaxes or PLAIN)
    if verification:
        entity.add_supported_context("1.2.840.10008.1.1")
    handlers = [(evt.EVT_C_STORE, on_store), (evt.EVT_ACCEPTED, on_accepted)]
    entity.start_server((HOST, peer.port), block=False, evt_handlers=handlers, ssl_context=tls)
    try:
        yield peer
    finally:
        entity.shutdown()


# ---- a web server that answers as it is told -------------------------------------------------------------------------


@contextmanager
def web_server(
    answers: list[tuple[int, dict[str, str], bytes]], tls: Any = None
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yields the address, and the headers of the requests; the last answer is repeated."""
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked.append(dict(self.headers))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    self.rfile.read(size + 2)
                self.rfile.readline()
            else:
                self.rfile.read(int(self.headers["Content-Length"]))
            code, headers, body = answers[min(len(asked), len(answers)) - 1]
            if code == 0:  # break the connection
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815 - the name is the library's

        def log_message(self, *_arguments: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer((HOST, 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http{'s' if tls else ''}://{HOST}:{server.server_address[1]}/dicom-web", asked
    finally:
        server.shutdown()
        server.server_close()


# ---- Orthanc ---------------------------------------------------------------------------------------------------------

USER, PASSWORD = "medic", "open-sesame"
_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass
class Orthanc:
    """A running Orthanc; it knows a modality ``receiver`` at ``receiver_port``."""

    http_port: int
    dicom_port: int
    receiver_port: int
    log: Path

    @property
    def dicom(self) -> tuple[str, str]:
        return "dicom", f"{HOST}:{self.dicom_port}/ORTHANC"

    @property
    def web(self) -> tuple[str, str]:
        return "dicomweb", f"http://{HOST}:{self.http_port}/dicom-web"

    def rest(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection(HOST, self.http_port, timeout=60)
        token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        content = None if body is None else body if isinstance(body, str) else json.dumps(body)
        try:
            connection.request(method, path, content, {"Authorization": f"Basic {token}"})
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == 200, (method, path, answer.status, text)
            return json.loads(text)
        finally:
            connection.close()

    def series(self, modality: str | None = None) -> list[str]:
        """Orthanc's ids of its series."""
        found = self.rest("GET", "/series?expand")
        return [one["ID"] for one in found if modality in (None, one["MainDicomTags"].get("Modality"))]

    def clear(self) -> None:
        for name in self.rest("GET", "/patients"):
            self.rest("DELETE", f"/patients/{name}")


@contextmanager
def orthanc(folder: Path) -> Iterator[Orthanc]:
    """Starts Orthanc on free ports, with users and checked AE titles, or skips."""
    binary = shutil.which("Orthanc", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
    if binary is None or not _PLUGIN.exists():
        pytest.skip("Orthanc is not installed (Debian packages orthanc and orthanc-dicomweb)")
    running = Orthanc(free_port(), free_port(), free_port(), folder / "orthanc.log")
    configuration = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": running.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomAet": "ORTHANC",
        "DicomPort": running.dicom_port,
        "DicomCheckCalledAet": True,
        "DicomAssociationCloseDelay": 1,
        "DicomModalities": {"receiver": ["UNETMED", HOST, running.receiver_port]},
        "Plugins": [str(_PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration), encoding="utf-8")
    with running.log.open("wb") as log:
        process = subprocess.Popen([binary, str(folder / "orthanc.json")], stdout=log, stderr=log, cwd=folder)
    try:
        wait_until(lambda: process.poll() is not None or _answers(running), "Orthanc answers", 60)
        if process.poll() is not None:
            pytest.skip(f"Orthanc does not start here (exit code {process.returncode})")
        yield running
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answers(running: Orthanc) -> bool:
    try:
        running.rest("GET", "/system")
    except (OSError, http.client.HTTPException):
        return False
    return True
