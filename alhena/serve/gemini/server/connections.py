"""Limits on connections: timeouts for slow clients, allowed Host headers, refusal of cross-site requests.

A connection *waits* until its request is complete. Waiting connections have a timeout, and their number for one client address is
bounded: a further one closes the oldest, so that half-open connections never block a complete request.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

import h11
from fastapi.responses import JSONResponse
from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

from alhena.serve.gemini.server.access import check_key
from alhena.serve.gemini.wire.fields import WireError, overloaded

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
HEADER_SECONDS = 15.0
BODY_SECONDS = 120.0
WRITE_SECONDS = 60.0
MAX_WAITING = 256
SMALL_BODY_BYTES = 1 << 20
MAX_BODY_BYTES = 64 << 20
# Bytes of all large bodies that are being received.
MAX_RECEIVED_BYTES = 256 << 20
Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class Protocol(H11Protocol):
    """uvicorn's HTTP protocol with timeouts for clients that do not complete their request or do not read the response."""

    # Connections whose request is not complete, by client address, oldest first.
    waiting: ClassVar[defaultdict[str, dict[Protocol, None]]] = defaultdict(dict)

    def connection_made(self, transport: Any) -> None:
        """``transport`` is that of asyncio or of uvloop, which share no class."""
        super().connection_made(transport)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._wait()

    def _wait(self) -> None:
        self._stop_waiting()
        connections = self.waiting[self._address]
        if len(connections) >= MAX_WAITING:
            oldest = next(iter(connections))
            oldest._stop_waiting()
            oldest.transport.abort()
        self.waiting[self._address][self] = None
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self._close_without_request)

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _stop_waiting(self) -> None:
        connections = self.waiting.get(self._address, {})
        connections.pop(self, None)
        if not connections:
            self.waiting.pop(self._address, None)
        self._stop_header_timer()

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _close_without_request(self) -> None:
        self._stop_waiting()
        self.transport.abort()

    def handle_events(self) -> None:
        super().handle_events()
        # The headers are complete; the body has a timeout of its own.
        if self.conn.their_state is not h11.IDLE:
            self._stop_header_timer()
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().connection_lost(exc)


class Bodies:
    """Reads request bodies, bounded in size, time, and total bytes of all bodies together."""

    def __init__(self) -> None:
        self._received = 0

    async def read(self, request: Request) -> bytearray:
        """Raises WireError 408, 413 or 429."""
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            raise WireError(413, f"the request has {length[:20]} bytes; at most {MAX_BODY_BYTES:,} are read")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._read(request)
        except TimeoutError:
            raise WireError(408, f"the request took longer than {BODY_SECONDS:.0f} s", "DEADLINE_EXCEEDED") from None

    async def _read(self, request: Request) -> bytearray:
        data, counted = bytearray(), 0
        try:
            async for chunk in request.stream():
                data += chunk
                if len(data) > MAX_BODY_BYTES:
                    raise WireError(413, f"the request is larger than {MAX_BODY_BYTES:,} bytes")
                if len(data) > SMALL_BODY_BYTES:
                    self._received += len(data) - counted
                    counted = len(data)
                if self._received > MAX_RECEIVED_BYTES:
                    raise overloaded("too many large requests are being received")
            return data
        finally:
            self._received -= counted


@dataclass(frozen=True)
class Hosts:
    """Allowed Host headers: some names, and with ``addresses`` every IP address (no foreign name can resolve to one)."""

    names: frozenset[str] = LOOPBACK
    addresses: bool = False

    @classmethod
    def serving(cls, host: str, more: Iterable[str] = ()) -> Hosts:
        """The allowed hosts of a server that listens on ``host``."""
        names = LOOPBACK | {host.lower(), *(name.lower() for name in more)}
        return cls(names, addresses=host.lower() not in LOOPBACK)

    def allow(self, header: str) -> bool:
        """
        >>> [Hosts().allow(host) for host in ("localhost:8000", "[::1]:80", "evil.example", "127.0.0.1.evil.example", "10.0.0.1")]
        [True, True, False, False, False]
        """
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        return name in self.names or (self.addresses and is_address(name))


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on this host."""
    return host.lower() in LOOPBACK or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def _opens_page(scope: Message, headers: Mapping[bytes, str]) -> bool:
    """Whether a person follows a link to the page: a tab of its own, which the site with the link cannot read."""
    return (scope["method"], scope["path"], headers.get(b"sec-fetch-dest")) == ("GET", "/", "document")


@dataclass(frozen=True)
class Access:
    """Who may send requests: allowed hosts, origins of web pages, keys (none: no key is needed), and how many at a time."""

    hosts: Hosts
    origins: tuple[str, ...]
    keys: tuple[str, ...]
    max_running: int


class Guard:
    """ASGI middleware: refuses foreign Host headers, cross-site requests, requests without a valid key, and more than
    ``max_running`` requests at a time.
    """

    def __init__(self, app: Application, access: Access) -> None:
        self._app, self._access, self._running = app, access, 0

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = self._refusal(scope)
        if error is not None:
            await JSONResponse(error.body(), error.code, {**error.headers, "connection": "close"})(scope, receive, send)
            return
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1

    def _refusal(self, scope: Message) -> WireError | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if not self._access.hosts.allow(host):
            message = f"the Host header is {host[:100]!r}; start the server with --allow-host to allow that name"
            return WireError(403, message, "PERMISSION_DENIED")
        # The scheme may differ: a proxy in front of this server may use TLS.
        foreign = origin is not None and origin.partition("://")[2].lower() != host.lower()
        cross_site = headers.get(b"sec-fetch-site") == "cross-site" and not _opens_page(scope, headers)
        if (foreign or cross_site) and origin not in self._access.origins:
            return WireError(403, "cross-site requests are refused; --cors allows an origin", "PERMISSION_DENIED")
        try:
            check_key(scope["path"], scope["query_string"].decode("latin-1"), headers, self._access.keys)
        except WireError as error:
            return error
        if self._running >= self._access.max_running:
            return overloaded(f"{self._access.max_running} requests are being answered")
        return None
