"""A server of the test's own that sends an archive whole, in part or wrong, and data sets that are published there."""

from __future__ import annotations

import hashlib
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from okdc.data import DATASETS
from okdc.data.source import Source


@dataclass
class Server:
    """What is served, and how."""

    content: bytes = b""
    stops_at: int | None = None  # the connection is closed after so many bytes of an answer
    ranges: bool = True  # whether it goes on from the middle
    sized: bool = True  # whether it tells the size
    status: int = 200
    requests: list[str | None] = field(default_factory=list)  # the Range of each request
    url: str = ""


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    """The server answers in a thread, and is closed in the end."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def served() -> Iterator[Server]:
    """A server on a free port of this machine."""
    serving = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            serving.requests.append(wanted)
            begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and serving.ranges else 0
            if serving.status != 200:
                self.send_error(serving.status)
                return
            self.send_response(206 if begin else 200)
            whole, body = len(serving.content), serving.content[begin:]
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{whole - 1}/{whole}")
            if serving.sized:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: serving.stops_at])
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.url = f"http://127.0.0.1:{http.server_address[1]}/archive.tar.gz"
    with running(http):
        yield serving


def change_source(name: str, patch: pytest.MonkeyPatch, **fields: object) -> Source:
    """Fields of a named data set, or of its archive, replaced for one test."""
    module, _, attribute = DATASETS.own[name].partition(":")
    owner = importlib.import_module(module)
    source: Source = getattr(owner, attribute)
    assert source.archive is not None
    source = replace(source, archive=replace(source.archive, **fields))  # type: ignore[arg-type]
    patch.setattr(owner, attribute, source)
    return source


def publish(content: bytes, name: str, server: Server, patch: pytest.MonkeyPatch) -> None:
    """Serve an archive, and have okdc take it for the published one."""
    server.content = content
    md5, size = hashlib.md5(content).hexdigest(), len(content)
    change_source(name, patch, url=server.url, md5=md5, size=size, unpacked=size)
