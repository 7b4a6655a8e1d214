"""Connections to another machine over SSH: how its address is written, who it must be, who we are, and a few
connections that serve any thread.

Addresses: ``sftp://[USER@]HOST[:PORT]/PATH`` (absolute; ``/~/PATH`` is below the user's home there) and restic's
``sftp:[USER@]HOST:PATH`` (below the home unless it begins with ``/``). HOST may be an alias of ``~/.ssh/config``, which
then gives the machine, port, user, keys and jump hosts.

Nobody is trusted who is not in the file of known hosts; nothing is ever added to that file here. Host and user are
plain words, because rules of ``~/.ssh/config`` may hand them to a shell.

A connection that was lost, or that did not answer in time, is dropped, and the call that was cut is
StorageUnavailable; the next one opens another. After a fork the child opens its own.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import CancelledError
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import asyncssh

from holdfast.errors import StorageDenied, StorageError, StorageUnavailable, UsageError
from holdfast.storage.select import Access

_T = TypeVar("_T")

_HOW = "Write sftp://USER@HOST:PORT/PATH, or sftp:USER@HOST:PATH."
_USER = r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.@+-]*)@)?"  # the last @ ends it
_HOST = r"(?P<host>\w[\w.-]*|\[[0-9A-Fa-f:.]+\])"
_AUTHORITY = re.compile(rf"{_USER}{_HOST}(?::(?P<port>[0-9]{{1,5}}))?\Z")
_SHORT = re.compile(rf"{_USER}{_HOST}:(?P<path>.+)\Z", re.DOTALL)
_PASSWORD = re.compile(r"[^@/:]+:[^@/]*@")  # user:password@
_KEY_FILES = ("id_ed25519_sk", "id_ecdsa_sk", "id_ed25519", "id_ecdsa", "id_rsa")
_EVERYBODYS_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
# The quickest first: with the processor's own instructions AES-GCM costs a fraction of the usual first choice.
_CIPHERS = (
    *("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"),
    *("aes128-ctr", "aes256-ctr"),
)
_KINDS = (
    *("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    *("rsa-sha2-512", "rsa-sha2-256"),
)
_LOG_IN_S = 30.0
_CUT = (asyncssh.SFTPNoConnection, asyncssh.SFTPConnectionLost, asyncssh.DisconnectError, asyncssh.ChannelOpenError)


@dataclass(frozen=True)
class Target:
    """A folder of a machine. ``user``: empty and ``port``: 0 where ``~/.ssh/config`` or the usual decides; ``path``:
    absolute, or below the home of the user there.
    """

    host: str
    path: str
    user: str = ""
    port: int = 0

    @property
    def machine(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")

    @property
    def place(self) -> str:
        return f"sftp://{self.machine}{'' if self.path.startswith('/') else '/~/'}{self.path}"


def read_address(address: str) -> Target:
    """The target that an address means; UsageError when it means none."""
    rest = address.removeprefix("sftp:")
    if _PASSWORD.match(rest.removeprefix("//")):
        raise UsageError(
            "A password may not stand in an sftp: address.",
            "Leave it out of the address and set HOLDFAST_SFTP_PASSWORD, or use a key.",
        )
    if rest.startswith("//"):
        authority, slash, path = rest[2:].partition("/")
        found, path = _AUTHORITY.match(unquote(authority)), unquote(path).lstrip("/")
        path = path[2:].lstrip("/") or "." if path == "~" or path.startswith("~/") else slash + path
    else:
        found = _SHORT.match(rest)
        path = found["path"].removeprefix("~/") if found else ""
    path = path.rstrip("/") or path[:1]
    port = int(found.groupdict().get("port") or 0) if found else 0
    if not found or not path or not path.isprintable() or port > 65535:
        raise UsageError("That is not an sftp: address that names a machine and a folder.", _HOW)
    return Target(found["host"].strip("[]"), path, found["user"] or "", port)


@dataclass(eq=False)
class Connection:
    """One SSH connection with one SFTP session. ``patience_s``: how long an answer may take."""

    ssh: asyncssh.SSHClientConnection
    sftp: asyncssh.SFTPClient
    patience_s: float
    running: int = 0  # calls that use it now
    _ended: asyncio.Task[None] | None = None
    _later: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    async def open(cls, target: Target, access: Access, patience_s: float, keepalive_s: float) -> Connection:
        ssh = await connect(target, access, keepalive_s)
        try:
            async with asyncio.timeout(_LOG_IN_S):
                sftp = await ssh.start_sftp_client(path_encoding=None)
        except BaseException as e:
            was_cut = ssh.is_closed()  # a server that has no SFTP leaves the connection open
            ssh.abort()
            if isinstance(e, asyncssh.ConnectionLost | OSError) or (was_cut and isinstance(e, asyncssh.Error)):
                raise StorageUnavailable(f"The connection to {target.machine} broke while it was made.") from e
            if not isinstance(e, (*_CUT, asyncssh.SFTPError)):
                raise
            raise StorageError(
                f"The SSH server at {target.machine} does not open an SFTP session.",
                "Switch its sftp subsystem on, and see that the account may use it.",
            ) from e
        made = cls(ssh, sftp, patience_s)
        made._ended = asyncio.create_task(sftp.wait_closed())
        return made

    @property
    def lost(self) -> bool:
        return self.ssh.is_closed() or self._ended is None or self._ended.done()

    def drop(self) -> None:
        self.ssh.abort()

    async def ask(self, question: Awaitable[_T]) -> _T:
        """The server's answer; TimeoutError when it takes too long."""
        async with asyncio.timeout(self.patience_s):
            return await question

    async def ask_all(self, questions: Iterable[Coroutine[Any, Any, object]], at_once: int) -> None:
        """Have many things done, so many at a time. The first failure ends it; nothing goes on behind it."""
        waiting: set[asyncio.Task[object]] = set()
        try:
            for question in questions:
                waiting.add(asyncio.create_task(question))
                if len(waiting) >= at_once:
                    await self._some(waiting)
            while waiting:
                await self._some(waiting)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _some(self, waiting: set[asyncio.Task[object]]) -> None:
        """Wait until one at least is answered. That it is one *at least* is what a slow line needs: much may be sent
        before it, and is no reason to give up while answers come.
        """
        done, _ = await asyncio.wait(waiting, timeout=self.patience_s, return_when=asyncio.FIRST_COMPLETED)
        waiting -= done
        failed = [e for task in done if (e := task.exception())]
        if failed:
            raise failed[0]
        if not done:
            raise TimeoutError

    def later(self, question: Coroutine[Any, Any, None]) -> None:
        """Have something done whose answer nobody waits for, as closing a file that was read."""

        async def done() -> None:
            with suppress(asyncssh.SFTPError, OSError):
                await self.ask(question)

        task = asyncio.create_task(done())
        self._later.add(task)
        task.add_done_callback(self._later.discard)


class Connections:
    """A few connections to one target, opened when they are needed, on an event loop in a thread of its own.

    A call takes the one that has least to do. Where all are busy another is opened, up to ``most``; where the server
    does not let more of them in, those that are open must do.
    """

    def __init__(self, opened: Callable[[], Coroutine[Any, Any, Connection]], most: int, machine: str) -> None:
        self._opened, self._most, self._machine = opened, max(1, most), machine
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._open: list[Connection] = []
        self._opening: asyncio.Task[None] | None = None
        self._no_more = False  # the server let no other one in

    def call(self, work: Callable[[Connection], Coroutine[Any, Any, _T]]) -> _T:
        """Do the work on one of the connections and wait for it."""
        future = asyncio.run_coroutine_threadsafe(self._do(work), self._started())
        try:
            return future.result()
        except CancelledError:
            raise StorageUnavailable(f"The connection to {self._machine} was closed.") from None
        except BaseException:
            future.cancel()  # somebody pressed Ctrl-C: what is half done is given up
            raise

    def close(self, wait_s: float = 0.0) -> None:
        """Close the connections and end the thread, waiting so long for it. Nothing is called any more."""
        with self._starting:
            if self._loop and self._stop and self._thread and self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._stop.set)
                if wait_s:
                    self._thread.join(wait_s)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                ready = threading.Event()
                work = partial(asyncio.run, self._serve(ready))
                self._thread = threading.Thread(target=work, name=f"sftp {self._machine}", daemon=True)
                self._thread.start()
                ready.wait()
            assert self._loop
            return self._loop

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        await self._stop.wait()
        for connection in self._open:
            connection.drop()
            await connection.ssh.wait_closed()

    async def _do(self, work: Callable[[Connection], Coroutine[Any, Any, _T]]) -> _T:
        connection = await self._take()
        connection.running += 1
        try:
            return await work(connection)
        except TimeoutError:
            connection.drop()
            raise StorageUnavailable(f"{self._machine} does not answer any more.") from None
        except (*_CUT, OSError) as e:
            connection.drop()
            raise StorageUnavailable(f"The connection to {self._machine} was lost: {why(e)}.") from None
        finally:
            connection.running -= 1

    async def _take(self) -> Connection:
        while True:
            self._forget_lost()
            best = min(self._open, key=lambda c: c.running, default=None)
            if best and (not best.running or self._no_more or len(self._open) >= self._most):
                return best
            if (
                self._opening is None
            ):  # one at a time: a wrong password is shown to the server once, not by every thread
                self._opening = asyncio.create_task(self._open_another())
                self._opening.add_done_callback(self._opening_ended)
            await asyncio.shield(self._opening)

    def _opening_ended(self, task: asyncio.Task[None]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # whoever waited has heard of it

    def _forget_lost(self) -> None:
        for connection in self._open:
            if connection.lost:
                connection.drop()
        self._open = [c for c in self._open if not c.lost]

    async def _open_another(self) -> None:
        try:
            another = await self._opened()
        except StorageError:
            self._forget_lost()
            if not self._open:
                raise
            self._no_more = True
        else:
            self._open.append(another)
            self._no_more = False


# -- who they are, who we are ------------------------------------------------------------------------------------------


@dataclass
class _KnownHosts:
    """What asyncssh asks for the keys a host may show; remembers whether it knew any for exactly this host and port."""

    hosts: asyncssh.SSHKnownHosts
    knew: bool = False

    def __call__(self, host: str, addr: str, port: int | None) -> Any:
        self.knew = bool(self._exactly(host, addr, port)[0])
        return self.hosts.match(host, addr, port)

    def kinds(self, host: str, port: int) -> list[str]:
        """The kinds of host key to ask for: first those that are known, so that a server with keys of many kinds shows
        one of them; then the others, so that a key of another kind is seen, and named. Empty where asyncssh knows best.
        """
        keys, authorities, *_ = self._exactly(host, "", None if port == 22 else port)
        first = [kind.decode() for key in keys for kind in key.sig_algorithms]
        return list(dict.fromkeys((*first, *_KINDS))) if first and not authorities else []

    def _exactly(self, host: str, addr: str, port: int | None) -> Any:
        return self.hosts.match(f"[{host}]:{port}" if port else host, "" if port else addr, None)


class _Witness(asyncssh.SSHClient):
    """Sees the key of a host that is not known, and trusts nobody."""

    def __init__(self) -> None:
        self.shown: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.shown = key
        return False


async def connect(target: Target, access: Access, keepalive_s: float) -> asyncssh.SSHClientConnection:
    """An SSH connection to the very machine that is known, as the user who may; StorageError otherwise."""
    config_file = access.home / ".ssh" / "config"
    witness, known = _Witness(), None
    asked: dict[str, Any] = {
        "host": target.host,
        "port": target.port or (),
        "username": target.user or (),
        "config": [str(config_file)] if os.access(config_file, os.R_OK) else [],
    }
    try:
        async with AsyncExitStack() as agents, asyncio.timeout(2 * _LOG_IN_S):
            options = asyncssh.SSHClientConnectionOptions(**asked, client_keys=None, known_hosts=b"")
            config = options.config
            known = _KnownHosts(_read_known_hosts(access, config.get("UserKnownHostsFile")))
            keys = await _our_keys(access, config, agents)
            return await asyncssh.connect(
                **asked,
                client_factory=lambda: witness,
                known_hosts=known,
                server_host_key_algs=known.kinds(options.host_key_alias or options.host, options.port) or (),
                client_keys=keys or None,
                agent_path=None,
                agent_identities=None,
                password=access.get("HOLDFAST_SFTP_PASSWORD") or None,
                encryption_algs=config.get("Ciphers") or _CIPHERS,
                connect_timeout=_LOG_IN_S,
                login_timeout=_LOG_IN_S,
                keepalive_interval=keepalive_s / 3,
                keepalive_count_max=2,
            )
    except asyncssh.HostKeyNotVerifiable:
        raise _stranger(target, access, witness.shown, known is not None and known.knew) from None
    except (asyncssh.Error, OSError) as e:
        raise _not_connected(target, e) from None
    except ValueError as e:  # asyncssh.ConfigParseError, or a word of the configuration that means nothing
        raise StorageError(f"{config_file} cannot be followed: {e}.") from None


def _not_connected(target: Target, e: asyncssh.Error | OSError) -> StorageError:
    if isinstance(e, asyncssh.PermissionDenied):
        return StorageDenied(
            f"{target.machine} lets nobody in with these keys or this password.",
            "Set HOLDFAST_SFTP_KEY_FILE or HOLDFAST_SFTP_PASSWORD, or have your key added to authorized_keys there.",
        )
    if isinstance(e, asyncssh.KeyExchangeFailed):
        return StorageDenied(
            f"{target.machine} knows no way to encrypt, or to prove who it is, that is safe today.",
            "Bring its SSH server up to date.",
        )
    if isinstance(e, (asyncssh.ProtocolError, asyncssh.ProtocolNotSupported)):
        return StorageError(f"What answers at {target.machine} does not speak SSH.", "Check the port.")
    reason = "nothing came in time" if isinstance(e, (TimeoutError, asyncssh.TimeoutError)) else why(e)
    return StorageUnavailable(
        f"{target.machine} cannot be reached: {reason}.", "Check its name and port, and that an SSH server runs there."
    )


def why(e: Exception) -> str:
    """The reason in an error of the system or of asyncssh, as words."""
    if isinstance(e, socket.gaierror):
        return "its name is not known"
    if isinstance(e, OSError):
        return os.strerror(e.errno) if e.errno else "nobody answers at any of its addresses"
    text = getattr(e, "reason", "") or "it was closed"
    return "".join(c for c in text if c.isprintable())[:200].rstrip(".")


def _stranger(target: Target, access: Access, key: asyncssh.SSHKey | None, knew: bool) -> StorageDenied:
    """Why nobody is trusted. ``key``: the one that was shown; None where asyncssh did not ask about it."""
    if not key:
        return StorageDenied(
            f"The host key of {target.machine} was revoked or has no valid signature, or a machine on the way to it is "
            "not known.",
            f"Ask whoever runs it, or try `ssh {target.host}`.",
        )
    shown = f"{key.get_algorithm()} {key.get_fingerprint()}"
    where = f"-p {target.port} {target.host}" if target.port else target.host
    if knew:
        entry = f"'[{target.host}]:{target.port}'" if target.port not in (0, 22) else target.host
        return StorageDenied(
            f"THE HOST KEY OF {target.machine} HAS CHANGED: it shows {shown}, which is not the one that is known. "
            "Somebody else may be answering in its place.",
            f"Ask whoever runs it. Only if it is right: `ssh-keygen -R {entry}`, then `ssh {where}` once.",
        )
    return StorageDenied(
        f"The host key of {target.machine} is not known here: {shown}.",
        f"Compare it with the server's own, then run `ssh {where}` once, or add what `ssh-keyscan {where}` prints to "
        f"{_known_hosts_file(access)}.",
    )


def _at_home(access: Access, path: str) -> Path:
    return access.home / path[2:] if path.startswith("~/") else Path(path)


def _known_hosts_file(access: Access) -> Path:
    return _at_home(access, access.get("HOLDFAST_SFTP_KNOWN_HOSTS") or "~/.ssh/known_hosts")


def _read_known_hosts(access: Access, configured: object) -> asyncssh.SSHKnownHosts:
    """All that is known of hosts. A file that cannot be read makes nobody known."""
    files = [_known_hosts_file(access), _EVERYBODYS_KNOWN_HOSTS]
    if access.get("HOLDFAST_SFTP_KNOWN_HOSTS"):
        del files[1]
    elif isinstance(configured, list) and configured:
        files[:1] = [_at_home(access, str(name)) for name in configured]
    hosts = asyncssh.SSHKnownHosts()
    for file in files:
        try:
            hosts.load(file.read_text("utf-8", "replace"))
        except OSError:
            continue
        except ValueError:
            raise StorageError(f"{file} is no list of known hosts: a line of it makes no sense.") from None
    return hosts


async def _our_keys(access: Access, config: Any, agents: AsyncExitStack) -> list[asyncssh.SSHKeyPair]:
    """The keys to show: the one of HOLDFAST_SFTP_KEY_FILE alone; else the agent's, then those of the usual files that
    open without a passphrase or with ours.
    """
    passphrase = access.get("HOLDFAST_SFTP_KEY_PASSWORD") or None
    if named := access.get("HOLDFAST_SFTP_KEY_FILE"):
        try:
            return list(asyncssh.load_keypairs([str(_at_home(access, named))], passphrase))
        except OSError as e:
            raise StorageDenied(f"The key file {named} cannot be read: {why(e)}.") from None
        except ValueError:
            raise StorageDenied(
                f"{named} is not a private key, or HOLDFAST_SFTP_KEY_PASSWORD does not open it."
            ) from None
    keys: list[asyncssh.SSHKeyPair] = []
    agent_path = str(config.get("IdentityAgent") or access.get("SSH_AUTH_SOCK"))
    if agent_path and agent_path != "none":
        with suppress(OSError, ValueError):  # an agent that is gone, as for ssh
            agent = await agents.enter_async_context(await asyncssh.connect_agent(str(_at_home(access, agent_path))))
            keys += await agent.get_keys()
    for file in config.get("IdentityFile") or [f"~/.ssh/{name}" for name in _KEY_FILES]:
        path = _at_home(access, str(file))
        if path.is_file():
            with suppress(OSError, ValueError):
                keys += asyncssh.load_keypairs([str(path)], passphrase)
    return keys
