"""A storage in a folder of another machine, over SFTP. ``storage/ssh.py`` says how it is reached and whom it trusts.

asyncssh was chosen because it is faster than what it is compared with and needs no program beside it: 1 GB in files of
20 MB to OpenSSH on the same machine's memory (two cores, server included) took 2.6 s on two connections with 2.3 s of
processor time, against rclone's 7.3 s with 3.3 s (3.5 s with eight transfers and no hashing). paramiko took 5.9 s with
4.9 s.

Objects lie as ``LocalStorage`` lays them out, so the folder can be opened there as well. An object is written below
``tmp/``, flushed, and then given its final name by a hard link, or where there are none by SFTP's plain rename; both
leave alone what is there already (``posix-rename`` does not, and is never used). The one rename that may replace is
that of a few other servers (rclone's): there two who put one name at the very same moment may both succeed.

Durability: SFTP can flush a file (``fsync@openssh.com``), but no folder. The file is flushed once more after it has its
final name: giving it a name changes the file itself (its number of links, its time of change) in the same transaction
of the journal as the entry in the folder, so on ext4, XFS and btrfs the flush that makes the one durable makes the
other so, and on ext4 and XFS all that was done before, as a new folder. A delete is flushed the same way through the
file that was opened before. Servers without that extension answer when the system they run on has the data, and
promise no more.

A repository's folder that is not there (an unmounted disk) is not an empty repository: it is StorageUnavailable. Times
are whole seconds, as this version of the protocol has them.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import asyncssh
from asyncssh import FXF_CREAT, FXF_EXCL, FXF_READ, FXF_WRITE

from holdfast.errors import (
    ObjectExists,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from holdfast.storage.base import CONFIG, FOLDERS, Buffer, ObjectInfo, check_folder, check_name, check_range
from holdfast.storage.select import Access
from holdfast.storage.ssh import Connection, Connections, Target, read_address

_T = TypeVar("_T")
_Work = Callable[[Connection], Coroutine[Any, Any, _T]]

_HEX = frozenset(b"0123456789abcdef")
_BLOCK = 32 * 1024  # every server takes that much in a request; those that take more say so
_IN_FLIGHT = 8  # requests of one transfer; times a block of 255 KiB that is all an OpenSSH server takes at once
_FOLDERS_AT_ONCE = 32
_LEFT_OVER_S = 24 * 3600  # a file in tmp/ this old belongs to nobody
_READ_ONLY = 1  # in the flags of statvfs@openssh.com
_GONE = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath)
_FULL = (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded)
_DENIED = (asyncssh.SFTPPermissionDenied, asyncssh.SFTPWriteProtect)
_REFUSED = (asyncssh.SFTPFailure, asyncssh.SFTPFileAlreadyExists, *_DENIED)
_ENDED = (asyncssh.SFTPNoConnection, asyncssh.SFTPConnectionLost)


def open_at(address: str, access: Access) -> SftpStorage:
    """The storage that an sftp: address means; nothing is asked of the network yet."""
    return SftpStorage(read_address(address), access)


class SftpStorage:
    """See the module. ``patience_s``: how long an answer may take; ``keepalive_s``: after how long without a sign of
    life the other side counts as gone.
    """

    lists_late = False

    def __init__(self, target: Target, access: Access, *, patience_s: float = 120.0, keepalive_s: float = 30.0) -> None:
        self.connections = access.connections
        self._target = target
        self._root = target.path
        self._opened = lambda: Connection.open(target, access, patience_s, keepalive_s)
        self._by_process: dict[int, Connections] = {}
        self._hard_links = True  # whether the server makes them, as far as is known
        self._cleared = False  # whether tmp/ was looked through

    @property
    def place(self) -> str:
        return self._target.place

    def create(self) -> None:
        """Make the folder and its subfolders. Existing ones are kept. The first put makes them durable."""
        self._do(self._create, self.place)

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        path = self._path(name)
        views = [memoryview(part).cast("B") for part in parts]
        self._do(lambda c: self._put(c, name, path, views), f"{self.place}: {name}")

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        path = self._path(name)
        check_range(start, length)
        return self._do(lambda c: self._get(c, name, path, start, length), f"{self.place}: {name}", missing=name)

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        thing = f"{self.place}/{check_folder(folder)}"
        if folder != "data":
            yield from self._do(lambda c: self._list(c, folder, ""), thing)
            return
        subfolders = self._do(self._subfolders, thing)
        for first in range(0, len(subfolders), _FOLDERS_AT_ONCE):
            some = subfolders[first : first + _FOLDERS_AT_ONCE]
            for infos in self._do(partial(self._list_many, subfolders=some), thing):
                yield from infos

    def stat(self, name: str) -> ObjectInfo:
        path = self._path(name)

        async def look(c: Connection) -> ObjectInfo:
            return self._info(name, await c.ask(c.sftp.lstat(path)))

        return self._do(look, f"{self.place}: {name}", missing=name)

    def delete(self, name: str) -> None:
        path = self._path(name)
        self._do(lambda c: self._delete(c, path), f"{self.place}: {name}")

    def free_space(self) -> int | None:
        async def free(c: Connection) -> int | None:
            try:
                vfs = await c.ask(c.sftp.statvfs(os.fsencode(self._root)))
            except asyncssh.SFTPOpUnsupported:
                return None
            return vfs.bavail * vfs.frsize

        return self._do(free, self.place)

    def close(self) -> None:
        if connections := self._by_process.pop(os.getpid(), None):
            connections.close(wait_s=2.0)

    # -- asking ----------------------------------------------------------------------------------------------------

    def _do(self, work: _Work[_T], thing: str, *, missing: str = "") -> _T:
        """Do the work on a connection; its errors become the contract's. ``thing``: what it is about; ``missing``: the
        object that is missing when something is.
        """

        async def named(c: Connection) -> _T:
            try:
                return await work(c)
            except _ENDED:
                raise
            except _GONE:
                if missing and (missing == CONFIG or await self._is_there(c, b"")):
                    raise ObjectMissing(f"{thing} is not there.") from None
                raise self._unmounted() from None
            except asyncssh.SFTPError as e:
                raise await self._named(c, e, thing) from None

        return self._connections().call(named)

    def _connections(self) -> Connections:
        """This process's own: a child of a fork must not talk on its parent's."""
        pid = os.getpid()
        if pid not in self._by_process:
            fresh = Connections(self._opened, self.connections, self._target.machine)
            if self._by_process.setdefault(pid, fresh) is fresh:
                weakref.finalize(self, _close, fresh, pid)
        return self._by_process[pid]

    async def _named(self, c: Connection, e: asyncssh.SFTPError, thing: str, size: int = 0) -> StorageError:
        """What a refusal means; ``size``: of what was to be stored. OpenSSH says "failure" of a full disk, of one that
        is read-only, and of much else.
        """
        full, read_only = isinstance(e, _FULL), False
        if isinstance(e, asyncssh.SFTPFailure):
            with suppress(asyncssh.SFTPError):
                vfs = await c.ask(c.sftp.statvfs(os.fsencode(self._root)))
                full = bool(vfs.bavail * vfs.frsize < max(size, vfs.bsize) or (vfs.files and not vfs.favail))
                read_only = bool(vfs.flags & _READ_ONLY)
        if read_only or isinstance(e, _DENIED):
            why = "the folder is read-only" if read_only else "permission denied"
            return StorageDenied(f"{thing}: {why}.", "Check the folder's owner and permissions, and how it is mounted.")
        if full:
            hint = "Free some space there, or forget and prune old snapshots."
            return StorageFull(f"{thing}: no space is left there.", hint)
        said = "".join(c for c in e.reason if c.isprintable())[:200].rstrip(".")
        return StorageError(f"{thing}: the server refuses: {said}.", "Its log, its disk or a quota may say why.")

    def _unmounted(self) -> StorageUnavailable:
        return StorageUnavailable(f"There is no repository at {self.place}.", "Is its disk mounted?")

    async def _is_there(self, c: Connection, path: bytes) -> bool:
        """Whether there is anything at a path; an empty one is the repository's folder."""
        try:
            await c.ask(c.sftp.lstat(path or os.fsencode(self._root)))
        except _GONE:
            return False
        return True

    # -- names -----------------------------------------------------------------------------------------------------

    def _below(self, *names: str) -> bytes:
        return os.fsencode("/".join((self._root.rstrip("/"), *names)))

    def _path(self, name: str) -> bytes:
        check_name(name)
        if name == CONFIG:
            return self._below(CONFIG)
        folder, digits = name.split("/")
        return self._below(folder, digits[:2], digits) if folder == "data" else self._below(folder, digits)

    def _info(self, name: str, attrs: asyncssh.SFTPAttrs) -> ObjectInfo:
        if attrs.size is None or not _is_file(attrs):
            raise StorageError(f"{name} in {self.place} is not a file: something else put it there.")
        return ObjectInfo(name, attrs.size, (attrs.mtime or 0) * 1_000_000_000)

    # -- folders ---------------------------------------------------------------------------------------------------

    async def _create(self, c: Connection) -> None:
        await self._make_root(c)
        await asyncio.gather(*(self._make_folder(c, self._below(folder)) for folder in (*FOLDERS, "tmp")))
        there: set[str] = set(await self._subfolders(c))
        wanted = [sub for number in range(256) if (sub := f"{number:02x}") not in there]
        await c.ask_all((self._make_folder(c, self._below("data", sub)) for sub in wanted), 64)

    async def _make_root(self, c: Connection) -> None:
        names = self._root.split("/")
        missing = []
        while names and any(names) and not await self._is_there(c, path := os.fsencode("/".join(names))):
            missing.append(path)
            names.pop()
        for path in reversed(missing):
            await self._make_folder(c, path)

    async def _make_folder(self, c: Connection, path: bytes) -> None:
        try:
            await c.ask(c.sftp.mkdir(path, asyncssh.SFTPAttrs(permissions=0o700)))
        except _REFUSED:
            if not await self._is_there(c, path):
                raise

    async def _need_repository(self, c: Connection) -> None:
        """Nothing is listed or made in a folder without ``config``: it may be where a disk should be mounted."""
        if not await self._is_there(c, self._below(CONFIG)):
            raise self._unmounted()

    # -- listing ---------------------------------------------------------------------------------------------------

    async def _subfolders(self, c: Connection) -> Sequence[str]:
        """The folders below ``data`` that may hold objects."""
        names = [_bytes(entry.filename) async for entry in self._entries(c, self._below("data"), needed=True)]
        return sorted(name.decode() for name in names if len(name) == 2 and _HEX.issuperset(name))

    async def _list_many(self, c: Connection, subfolders: Sequence[str]) -> Sequence[Sequence[ObjectInfo]]:
        return await asyncio.gather(*(self._list(c, "data", sub) for sub in subfolders))

    async def _list(self, c: Connection, folder: str, sub: str) -> Sequence[ObjectInfo]:
        """The objects of a folder, or of the subfolder of ``data`` with these digits."""
        found = []
        path = self._below(folder, sub) if sub else self._below(folder)
        async for entry in self._entries(c, path, needed=not sub):
            digits, attrs = _bytes(entry.filename), entry.attrs
            if len(digits) != 64 or not _HEX.issuperset(digits) or not digits.startswith(sub.encode()):
                continue
            if attrs.size is None or attrs.permissions is None:  # a server that does not tell while it lists
                with suppress(*_GONE):
                    attrs = await c.ask(c.sftp.lstat(path + b"/" + digits))
            if _is_file(attrs):
                found.append(self._info(f"{folder}/{digits.decode()}", attrs))
        return found

    async def _entries(self, c: Connection, path: bytes, *, needed: bool) -> AsyncIterator[asyncssh.SFTPName]:
        """What a folder holds; nothing where it is not there, if it is not ``needed`` or the repository still is."""
        entries = c.sftp.scandir(path)
        while True:
            try:
                entry = await c.ask(anext(entries))
            except StopAsyncIteration:
                return
            except _GONE:
                if needed:
                    await self._need_repository(c)
                return
            yield entry

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _get(self, c: Connection, name: str, path: bytes, start: int, length: int | None) -> bytes:
        file = await c.ask(c.sftp.open(path, FXF_READ, encoding=None, block_size=0))
        try:
            size = self._info(name, await c.ask(file.stat())).size
            end = size if length is None else start + length
            if not start <= end <= size:
                raise _truncated(name, self.place, max(start, end))
            return await self._read(c, file, name, start, end - start)
        finally:
            c.later(file.close())

    async def _read(self, c: Connection, file: Any, name: str, start: int, length: int) -> bytes:
        block = max(_BLOCK, c.sftp.limits.max_read_len)
        if length <= block:
            data: bytes = await c.ask(file.read(length, start)) if length else b""
            if len(data) == length:
                return data
        data_read = bytearray(length)

        async def read(first: int) -> None:
            at, end = first, min(first + block, length)
            while at < end:
                data = await file.read(end - at, start + at)
                if not 0 < len(data) <= end - at:
                    raise _truncated(name, self.place, start + end)
                data_read[at : at + len(data)] = data
                at += len(data)

        await c.ask_all((read(first) for first in range(0, length, block)), _IN_FLIGHT)
        return bytes(data_read)

    # -- writing ---------------------------------------------------------------------------------------------------

    async def _put(self, c: Connection, name: str, path: bytes, views: Sequence[memoryview]) -> None:
        published = False
        if not await self._is_there(c, path):
            tmp = self._below("tmp", secrets.token_hex(16))
            file = await self._open_tmp(c, name, tmp)
            try:
                await self._clear_left_overs(c, file)
                await c.ask_all(_writes(file, views, max(_BLOCK, c.sftp.limits.max_write_len)), _IN_FLIGHT)
                await _flush(c, file)
                published = await self._publish(c, tmp, path)
                await _flush(c, file)
            except asyncssh.SFTPFailure as e:  # asked while the disk is as full as it was
                raise await self._named(c, e, f"{self.place}: {name}", sum(map(len, views))) from None
            finally:
                c.later(file.close())
                c.later(c.sftp.remove(tmp))
        if not published:
            await self._flush_other(c, path)
            raise ObjectExists(f"{name} is in {self.place} already.")

    async def _open_tmp(self, c: Connection, name: str, tmp: bytes) -> Any:
        new = {"encoding": None, "block_size": 0, "attrs": asyncssh.SFTPAttrs(permissions=0o600)}
        with suppress(*_GONE):
            return await c.ask(c.sftp.open(tmp, FXF_WRITE | FXF_CREAT | FXF_EXCL, **new))
        if name != CONFIG:  # which is put before there is a repository
            await self._need_repository(c)
        await self._make_folder(c, self._below("tmp"))
        return await c.ask(c.sftp.open(tmp, FXF_WRITE | FXF_CREAT | FXF_EXCL, **new))

    async def _publish(self, c: Connection, tmp: bytes, path: bytes) -> bool:
        """Give the file its final name; False when another has it."""
        with suppress(*_GONE):
            return await self._give_name(c, tmp, path)
        await self._need_repository(c)
        folder = os.path.dirname(path)
        for missing in (os.path.dirname(folder), folder):
            await self._make_folder(c, missing)
        return await self._give_name(c, tmp, path)

    async def _give_name(self, c: Connection, tmp: bytes, path: bytes) -> bool:
        ways = (c.sftp.link, c.sftp.rename) if self._hard_links else (c.sftp.rename,)
        for way in ways:
            try:
                await c.ask(way(tmp, path))
                return True
            except asyncssh.SFTPOpUnsupported:
                self._hard_links = False
            except _REFUSED:
                if await self._is_there(c, path):  # ours, if a server that was in a muddle moved it all the same
                    return not await self._is_there(c, tmp)
                if way is ways[-1]:
                    raise
        raise StorageError(f"The server of {self.place} can neither link nor rename a file.")

    async def _delete(self, c: Connection, path: bytes) -> None:
        file = None
        try:
            with suppress(*_DENIED):
                file = await c.ask(c.sftp.open(path, FXF_READ, encoding=None))
            await c.ask(c.sftp.remove(path))
            if file:
                await _flush(c, file)
        except _GONE:
            if not await self._is_there(c, b""):
                raise
        finally:
            if file:
                c.later(file.close())

    async def _flush_other(self, c: Connection, path: bytes) -> None:
        """Make durable what another has stored: he may have been killed before he could."""
        with suppress(*_GONE, *_DENIED):
            file = await c.ask(c.sftp.open(path, FXF_READ, encoding=None))
            try:
                await _flush(c, file)
            finally:
                c.later(file.close())

    async def _clear_left_overs(self, c: Connection, file: Any) -> None:
        """Once: remove what killed writers left. Now is when the file was made, by the server's clock."""
        if self._cleared:
            return
        self._cleared = True
        with suppress(*_REFUSED):
            now = (await c.ask(file.stat())).mtime or 0
            async for entry in self._entries(c, self._below("tmp"), needed=False):
                name = _bytes(entry.filename)
                if len(name) == 32 and _HEX.issuperset(name) and 0 < (entry.attrs.mtime or 0) < now - _LEFT_OVER_S:
                    c.later(c.sftp.remove(self._below("tmp", name.decode())))


async def _flush(c: Connection, file: Any) -> None:
    with suppress(asyncssh.SFTPOpUnsupported):
        await c.ask(file.fsync())


def _writes(file: Any, views: Sequence[memoryview], most: int) -> Iterator[Coroutine[Any, Any, object]]:
    """One request for each block of at most so many bytes. Small parts are joined, large ones are cut, not copied."""
    at, held, small = 0, 0, list[memoryview]()
    for part in views:
        view = part
        while view:
            taken = view[: most - held]
            view = view[len(taken) :]
            small.append(taken)
            held += len(taken)
            if held == most:
                yield file.write(small[0] if len(small) == 1 else b"".join(small), at)
                at, held, small = at + held, 0, []
    if small:
        yield file.write(b"".join(small), at)


def _is_file(attrs: asyncssh.SFTPAttrs) -> bool:
    """Some servers tell the permissions without the kind."""
    kind = stat.S_IFMT(attrs.permissions or 0)
    return attrs.size is not None and kind in (0, stat.S_IFREG)


def _bytes(name: bytes | str) -> bytes:
    return os.fsencode(name)


def _truncated(name: str, place: str, end: int) -> StorageError:
    return StorageError(f"{name} in {place} ends before byte {end}: it is truncated.")


def _close(connections: Connections, pid: int) -> None:
    if pid == os.getpid():
        connections.close()
