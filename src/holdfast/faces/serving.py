"""The listener: uvicorn, with our limits. Ends cleanly on SIGTERM and SIGINT: what runs is finished first.

What is promised: nobody is waited for longer than he is told to be. A connection on which no request comes, whose
request does not end its headers, whose body does not go on, or which does not take what it asked for is closed;
headers are as long as MOST_BARE at most; there are so many connections and no more, and of one address only some.
One look a second at all connections sees to that: no request pays for a timer.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import ipaddress
import resource
import signal
import socket
import struct
import termios
from collections import Counter
from collections.abc import Sequence
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from holdfast.errors import UsageError
from holdfast.faces.bodies import Limits, impose
from holdfast.faces.lines import attach
from holdfast.faces.problems import Problem
from holdfast.settings import ServerSettings

FINISH_S = 30  # so long running requests have after SIGTERM
MOST_BARE = 64 << 10  # bytes that may come without one of a body: headers, and what stands between and behind pieces
_OTHER_FILES = 200  # that the process has open beside connections


def listen(host: str, port: int, option: str = "--port") -> socket.socket:
    """A socket that listens; UsageError says why it cannot. ``option``: what says another port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as e:
        listener.close()
        raise UsageError(
            f"Cannot listen on {host}:{port}: {e.strerror}.", f"Choose another --host or {option}."
        ) from None
    return listener


class Ending:
    """Hears SIGTERM and SIGINT from its beginning to its end, and ends the server: one that starts, once it has."""

    def __init__(self) -> None:
        self.asked = False
        self.server: uvicorn.Server | None = None
        self._before: list[tuple[signal.Signals, Any]] = []

    def __enter__(self) -> Ending:
        self._before = [(end, signal.signal(end, self._hear)) for end in (signal.SIGTERM, signal.SIGINT)]
        return self

    def __exit__(self, *about: object) -> None:
        for end, handler in self._before:
            signal.signal(end, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self.server is not None:
            self.server.should_exit = True


def serve_app(app: ASGIApp, listeners: Sequence[socket.socket], ending: Ending, settings: ServerSettings) -> None:
    """Serve until it is to end; then return. Of the settings count the proxies, who may say which address a request
    comes from, and what is said of patience and connections.
    """
    _collect_less_often()
    ending.server = _Server(_Config(app, settings))
    if not ending.asked:  # while it runs uvicorn hears the signals itself
        ending.server.run(sockets=list(listeners))


def _collect_less_often() -> None:
    """Leave what was loaded out of the search for garbage, and search after 20,000 new objects instead of 700.

    Small uploads went an eighth faster so, and evenly: a search through everything holds up all who wait.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _most_connections(wanted: int) -> int:
    """As many as wanted, if the process may have so many files open: as many as the system lets it have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - _OTHER_FILES))


class _Config(uvicorn.Config):
    """uvicorn's settings, and ours for its connections to find."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        super().__init__(
            app, loop="uvloop", http=Connection, ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, proxy_headers=bool(settings.proxies), forwarded_allow_ips=list(settings.proxies),
            timeout_graceful_shutdown=FINISH_S,
        )  # fmt: skip
        self.patience, self.least_rate = settings.patience, settings.least_rate
        self.limits = Limits(settings.patience)
        self.door = _Door(_most_connections(settings.connections), settings.connections_each, settings.proxies)


class _Server(uvicorn.Server):
    """Looks at its connections once a second; oftener where patience is short."""

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0 or cast(_Config, self.config).patience < 10:
            for connection in list(self.server_state.connections):
                cast(Connection, connection).look()
        return await super().on_tick(counter)


class _Door:
    """Who may come in: counts connections, in all and by address.

    uvicorn's own limit counts them too, but answers 503 to requests of those that are there already, and closes none.
    """

    def __init__(self, most: int, each: int, proxies: Sequence[str]) -> None:
        self._most, self._each = most, each
        self._all_are_proxies = "*" in proxies
        self._proxies = [ipaddress.ip_network(named, strict=False) for named in proxies if _is_network(named)]
        self._of: Counter[str] = Counter()
        self._inside: set[Connection] = set()

    def let_in(self, connection: Connection) -> bool:
        """Whether there is room. If there is none, the connection that waited longest for a request makes room: who
        keeps connections and asks nothing keeps nobody out.
        """
        self._inside.add(connection)
        self._of[connection.home] += 1
        if self._of[connection.home] > self._each and not self._is_proxy(connection.address):
            return False
        if len(self._inside) <= self._most:
            return True
        idle = [c for c in self._inside if c is not connection and c.is_idle]
        if idle:
            min(idle, key=lambda c: c.since).cut_off()
        return bool(idle)

    def note_gone(self, connection: Connection) -> None:
        if connection in self._inside:
            self._inside.remove(connection)
            self._of[connection.home] -= 1
            if not self._of[connection.home]:
                del self._of[connection.home]

    def _is_proxy(self, address: str) -> bool:
        """Behind a proxy there are many clients; it counts them, if anybody does."""
        parsed = _parsed(address)
        return self._all_are_proxies or (parsed is not None and any(parsed in named for named in self._proxies))


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


class Connection(HttpToolsProtocol):
    """uvicorn's connection, which bounds nothing that its client does, with bounds.

    It is the client's turn while a request or its body comes, and while bytes wait for it; only then is it hurried.
    ``since``: when it became its turn.
    """

    def __init__(self, config: uvicorn.Config, *about: Any, **more: Any) -> None:
        super().__init__(config, *about, **more)
        ours = cast(_Config, config)
        self._patience, self._limits, self._door = ours.patience, ours.limits, ours.door
        self._least = int(2 * ours.patience * ours.least_rate)  # bytes in twice the patience
        self.address = self.home = ""
        self.since = self._heard = self._window = 0.0
        self._in_body = False
        self._bare = self._came = self._came_before = self._came_at_window = 0
        self._unsent = self._unsent_at_window = 0
        self._unsent_window = 0.0

    # -- what uvicorn and the parser call ----------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.since = self.loop.time()
        self.address = self.client[0] if self.client else ""
        self.home = _home(self.address)
        if not self._door.let_in(self):
            self._refuse(Problem(503, "too-many-connections", "There are too many connections.", "Come again soon."))

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.note_gone(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Hand it to the parser, of headers only as much as they may have."""
        self._came += len(data)
        while data and not self.transport.is_closing():
            room = len(data) if self._in_body else MOST_BARE - self._bare
            part, data = (data, b"") if len(data) <= room else (data[:room], data[room:])
            self._bare += len(part)
            if part:
                super().data_received(part)
            if self._bare > MOST_BARE or not part:
                self._refuse(Problem(431, "headers-too-large", f"A request's headers have at most {MOST_BARE} bytes."))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        impose(cast(Any, self.scope), self._limits)
        attach(cast(Any, self.scope), self)
        self.since = self.loop.time()

    def on_headers_complete(self) -> None:
        self._in_body, self._bare = True, 0
        self._heard = self._window = self.loop.time()
        self._came_at_window = self._came
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._bare = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body, self._bare = False, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()

    # -- what the server calls ---------------------------------------------------------------------------------------

    def look(self) -> None:
        """Close the connection if nothing goes on though it is the client's turn."""
        now = self.loop.time()
        if self._takes_too_little(now):
            self.cut_off()
        elif self.transport.is_closing() or self._unsent:
            return
        elif not self._is_at_work:
            if now - self.since > self._patience:
                self.transport.close()
        elif self._in_body and self._sends_too_little(now):
            self._refuse(Problem(408, "too-slow", "The body came too slowly, or not at all.", "Send it again."))

    @property
    def is_idle(self) -> bool:
        """Whether it can be closed without breaking off anything but the headers of a request."""
        return not (self._is_at_work or self._unsent or self.transport.is_closing())

    def cut_off(self) -> None:
        self.transport.abort()

    # -- what faces call ---------------------------------------------------------------------------------------------

    def untaken(self) -> int:
        """As ``lines.Line`` has it."""
        if self.transport.is_closing():
            return -1
        unsent, found = self.transport.get_write_buffer_size(), self.transport.get_extra_info("socket")
        try:
            kernels = fcntl.ioctl(found.fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:
            return -1
        return int(unsent + struct.unpack("i", kernels)[0])

    # -- judging -----------------------------------------------------------------------------------------------------

    @property
    def _is_at_work(self) -> bool:
        """Whether a request is being answered."""
        cycle = cast(RequestResponseCycle | None, self.cycle)
        return cycle is not None and not cycle.response_complete

    def _sends_too_little(self, now: float) -> bool:
        if self.flow.read_paused or self.cycle.waiting_for_100_continue:  # it is our turn
            self._heard = self._window = now
            self._came_at_window = self._came
            return False
        if self._came != self._came_before:
            self._heard, self._came_before = now, self._came
        if now - self._heard > self._patience:
            return True
        if now - self._window <= 2 * self._patience:
            return False
        came, self._came_at_window, self._window = self._came - self._came_at_window, self._came, now
        return came < self._least

    def _takes_too_little(self, now: float) -> bool:
        unsent, before = self.transport.get_write_buffer_size(), self._unsent
        self._unsent = unsent
        if not unsent or unsent > before:  # more is written only when enough of the earlier bytes was taken
            self._unsent_at_window, self._unsent_window = unsent, now
            return False
        if now - self._unsent_window <= 2 * self._patience:
            return False
        taken, self._unsent_at_window, self._unsent_window = self._unsent_at_window - unsent, unsent, now
        return taken < self._least

    def _refuse(self, problem: Problem) -> None:
        """Answer, if no other answer has begun; whoever works for the client is told that it has gone."""
        if self.transport.is_closing():
            return
        if not (self._is_at_work and self.cycle.response_started):
            lines = [b"%b: %b\r\n" % header for header in problem.raw_headers]
            self.transport.write(
                b"".join((STATUS_LINE[problem.status_code], *lines, b"connection: close\r\n\r\n", problem.body))
            )
        if self._is_at_work:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


def _home(address: str) -> str:
    """What connections are counted by: the address, or the network of an IPv6 address, which is one customer's."""
    parsed = _parsed(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed or address)


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
