"""A minimal HTTP/1.1 server on loopback in a thread of its own: keep-alive, Content-Length and chunked bodies.

By hand because the emulators answer megabytes inside benchmarks, where the server must cost next to nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Self, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

T = TypeVar("T")

MAX_HEAD_BYTES = 1_000_000
"""A fetch of 1,000 ids of 512 characters is one request line of half a megabyte."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; header names are lower case, ``path`` is unquoted and without its query."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """One answer, JSON unless its headers say otherwise."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cut:
    """No whole answer: the connection ends, ``body_bytes`` into the answer's body or, when None, before its head."""

    response: Response | None = None
    body_bytes: int | None = None


Handler = Callable[[Request], Awaitable[Response | Cut]]


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer with ``value`` as its JSON body."""
    return Response(status, orjson.dumps(value), headers or {})


def encode_head(response: Response) -> bytes:
    """The status line and the headers as bytes."""
    reason = HTTPStatus(response.status).phrase
    lines = [f"HTTP/1.1 {response.status} {reason}", f"content-length: {len(response.body)}"]
    if "content-type" not in response.headers:
        lines.append("content-type: application/json")
    lines.extend(f"{name}: {value}" for name, value in response.headers.items())
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def parse_head(head: bytes) -> tuple[str, str, dict[str, list[str]], dict[str, str]]:
    """The method, path, query and headers of a request."""
    request_line, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = request_line.split(" ", 2)
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    url = urlsplit(target)
    return method, unquote(url.path), parse_qs(url.query, keep_blank_values=True), headers


def parse_chunks(buffer: bytes | bytearray, start: int) -> tuple[bytes, int] | None:
    """The body sent in chunks from ``start`` and where it ends, or None while it is not all there."""
    parts: list[bytes] = []
    while (line_end := buffer.find(b"\r\n", start)) >= 0:
        size = int(bytes(buffer[start:line_end]).split(b";")[0], 16)
        start = line_end + 2
        if size == 0:
            end = buffer.find(b"\r\n", start)
            return (b"".join(parts), end + 2) if end >= 0 else None
        if len(buffer) < start + size + 2:
            return None
        parts.append(bytes(buffer[start : start + size]))
        start += size + 2
    return None


class Connection(asyncio.Protocol):
    """One client's connection; its requests are answered one after the other."""

    def __init__(self, handler: Handler, connections: set[Connection]) -> None:
        self._handler = handler
        self._connections = connections
        self._buffer = bytearray()
        self._head: tuple[str, str, dict[str, list[str]], dict[str, str]] | None = None
        self._body_start = 0
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        # asyncio leaves it out where the listening socket names no protocol; a small answer would then wait 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None:
            self._serve_next()

    def close(self) -> None:
        """End the connection at once."""
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()

    def _serve_next(self) -> None:
        try:
            request = self._take_request()
        except ValueError:
            self.close()
            return
        if request is not None:
            self._task = asyncio.get_running_loop().create_task(self._serve(request))

    def _take_request(self) -> Request | None:
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEAD_BYTES:
                    raise ValueError("head too long")
                return None
            self._head, self._body_start = parse_head(bytes(self._buffer[:end])), end + 4
        body = self._take_body(self._head[3])
        if body is None:
            return None
        request, self._head = Request(*self._head, body), None
        return request

    def _take_body(self, headers: Mapping[str, str]) -> bytes | None:
        if "chunked" in headers.get("transfer-encoding", ""):
            chunked = parse_chunks(self._buffer, self._body_start)
            if chunked is None:
                return None
            body, end = chunked
        else:
            end = self._body_start + int(headers.get("content-length", "0"))
            if len(self._buffer) < end:
                return None
            body = bytes(memoryview(self._buffer)[self._body_start : end])
        del self._buffer[:end]
        return body

    async def _serve(self, request: Request) -> None:
        answer = await self._handler(request)
        self._task = None
        if self._transport is None:
            return
        if isinstance(answer, Cut):
            self._cut(answer, self._transport)
            return
        self._transport.write(encode_head(answer))
        self._transport.write(answer.body)
        if request.headers.get("connection", "").lower() == "close":
            self._transport.close()
        elif self._buffer:
            self._serve_next()

    @staticmethod
    def _cut(cut: Cut, transport: asyncio.Transport) -> None:
        if cut.response is None or cut.body_bytes is None:
            # A lingering time of zero makes the kernel send RST: the client sees a reset, not an orderly end.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
            return
        transport.write(encode_head(cut.response) + cut.response.body[: cut.body_bytes])
        transport.close()


class LoopbackServer:
    """Serves ``handler`` on 127.0.0.1 in a background thread; ``port`` 0 takes a free one."""

    def __init__(self, handler: Handler, port: int = 0) -> None:
        self._handler = handler
        self._connections: set[Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._socket = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name=f"emulator-{self.port}", daemon=True)
        self._stop = asyncio.Event()

    def start(self) -> Self:
        """Accept connections until `stop`."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Cut every connection and free the port."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: stopped already
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread.is_alive():
            self._thread.join()

    def call(self, act: Callable[[], None]) -> None:
        """Do it on the server's thread, and return when it is done."""
        if threading.current_thread() is self._thread:
            act()
            return
        done = threading.Event()

        def act_and_tell() -> None:
            act()
            done.set()

        self._loop.call_soon_threadsafe(act_and_tell)
        done.wait()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Do it on the server's loop; the future may be waited for on any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        def connect() -> Connection:
            return Connection(self._handler, self._connections)

        server = await self._loop.create_server(connect, sock=self._socket)
        await self._stop.wait()
        server.close()
        for connection in list(self._connections):
            connection.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:  # a held request whose client is gone
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
