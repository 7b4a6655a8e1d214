"""Manifests as snapshots: one that has all its files becomes a snapshot of its tree, so that the command line lists and
restores it.

What is promised: memory does not grow with the number of files: entries are sorted on disk.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import pwd
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import quote

import msgspec

from holdfast.catalog import holdings, people
from holdfast.catalog.database import Database
from holdfast.catalog.holdings import Manifest
from holdfast.errors import NoContent, ObjectMissing
from holdfast.manifests.document import Line, normal, parse_time
from holdfast.manifests.files import Files
from holdfast.manifests.manifests import Manifests
from holdfast.repository.format import Entry, Snapshot, Totals
from holdfast.repository.pages import Run, sort_key, split
from holdfast.shelf.shelf import Content, Shelf
from holdfast.shelf.sorting import AT_ONCE, sorted_on_disk

_LOOKED_FOR = 500
_UNKNOWN_OWNER = 4_000_000_000  # numbers from here on stand for names that this machine does not know
_TIME_MOST = (1 << 63) - 1
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

Key = tuple[bytes, bytes, int]
Item = tuple[Key, bytes]  # sort key and rank among those of the same path, stored line
_decode_item = msgspec.msgpack.Decoder(Item).decode


class SnapshotMaker:
    """See the module."""

    def __init__(
        self, shelf: Shelf, files: Files, manifests: Manifests, database: Database, folder: str, program: str
    ) -> None:
        self._shelf, self._files, self._manifests, self._database = shelf, files, manifests, database
        self._folder, self._program = folder, program
        self._earlier: dict[tuple[object, ...], str] | None = None  # made before this server began

    def make(self, number: int) -> str:
        """Make the snapshot of a complete manifest; its id."""
        with self._database.reading() as c:
            manifest = holdings.manifest_by_id(c, number)
            account = people.account_by_id(c, manifest.account) if manifest and manifest.account else None
        if manifest is None or account is None:
            raise NoContent("The manifest is gone.")
        owners = _Owners()

        def runs() -> Iterator[Run]:
            return self._runs(manifest, owners)

        base = manifest.base.encode("utf-8", "replace") or b"/" + manifest.name.encode()
        snapshot_id = self._made_earlier(manifest, account.username) or self._shelf.put_snapshot(
            runs, lambda root: self._snapshot(manifest, account.username, base, root), owners.users, owners.groups
        )
        with self._database.writing() as c:
            is_there = holdings.set_snapshot(c, number, snapshot_id)
        if not is_there:
            self._shelf.repo.storage.delete(f"snapshots/{snapshot_id}")
            raise NoContent("The manifest is gone.")
        return snapshot_id

    def _made_earlier(self, manifest: Manifest, username: str) -> str:
        """The snapshot of it that a server made which was killed before it could note so; empty when there is none."""
        repo = self._shelf.repo
        if self._earlier is None:
            found = [s for s in repo.snapshots() if "manifest" in s.snapshot.tags]
            self._earlier = {(s.snapshot.user, s.snapshot.time_ns, *s.snapshot.tags): s.id for s in found}
        snapshot_id = self._earlier.pop((username, manifest.received_ns, *_tags(manifest)), "")
        with contextlib.suppress(ObjectMissing):
            if snapshot_id and repo.storage.stat(f"snapshots/{snapshot_id}"):
                return snapshot_id
        return ""

    def _snapshot(self, manifest: Manifest, username: str, base: bytes, root: bytes) -> Snapshot:
        return Snapshot(
            time_ns=manifest.received_ns, host=self._shelf.repo.owner.host, user=username, base=base, paths=[base],
            tags=_tags(manifest), root=root, program=self._program,
            totals=Totals(files=manifest.files, bytes_total=manifest.content_bytes),
        )  # fmt: skip

    def _runs(self, manifest: Manifest, owners: _Owners) -> Iterator[Run]:
        """The entries in a snapshot's order, with their content."""
        items = sorted_on_disk(_keyed(self._manifests.lines(manifest)), _decode_item, self._folder)
        named = (next(same) for _, same in itertools.groupby(items, key=lambda item: item[0][:2]))
        yield b"", [Entry(b"", "d", 0o755, 0, 0, manifest.received_ns, 0, 0)]
        while some := list(itertools.islice(named, _LOOKED_FOR)):
            entries = self._entries(manifest, [msgspec.json.decode(line, type=Line) for _, line in some], owners)
            for directory, group in itertools.groupby(entries, key=lambda pair: pair[0]):
                yield directory, [entry for _, entry in group]

    def _entries(self, manifest: Manifest, lines: list[Line], owners: _Owners) -> list[tuple[bytes, Entry]]:
        about = [(line, msgspec.json.decode(line.entry)) for line in lines]
        with self._database.reading() as c:
            hashes = {entry["hash"].lower() for line, entry in about if line.kind == "f"}
            files = holdings.files_of(c, manifest.account or 0, hashes)
        made: list[tuple[bytes, Entry]] = []
        for line, entry in about:
            directory, name = split(normal(msgspec.json.decode(line.path)).encode())
            content = Content(0, b"", 0)
            if line.kind == "f":
                file = files.get(entry["hash"].lower())
                if file is None:
                    raise NoContent("A file of the manifest is gone: so is the manifest, or soon.")
                content = Content(file.size, file.chunks, file.depth)
            mode = int(str(entry.get("permissions", "644" if line.kind == "f" else "755")), 8) & 0o7777
            made.append((directory, Entry(
                name, line.kind, mode, owners.uid(entry.get("user")), owners.gid(entry.get("group")),
                _time_ns(entry, manifest), 0, 0, content.size, content.chunks, content.depth,
            )))  # fmt: skip
        return made


def _tags(manifest: Manifest) -> list[str]:
    return ["manifest", f"{quote(manifest.name, safe='')}:{manifest.version}"]


class _Owners:
    """Numbers for owners' names: this machine's where it knows the name, else made up."""

    def __init__(self) -> None:
        self._users: dict[str, int] = {}
        self._groups: dict[str, int] = {}

    def uid(self, name: object) -> int:
        return _number(self._users, name, _uid_here)

    def gid(self, name: object) -> int:
        return _number(self._groups, name, lambda _: None)

    def users(self, number: int) -> str:
        return next((name for name, found in self._users.items() if found == number and not name.isdigit()), "")

    def groups(self, number: int) -> str:
        return next((name for name, found in self._groups.items() if found == number and not name.isdigit()), "")


def _number(known: dict[str, int], name: object, here: Callable[[str], int | None]) -> int:
    if name is None or name == "":
        return 0
    text = str(name)
    if text not in known:
        is_number = text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 1 << 32
        found = int(text) if is_number else here(text)
        known[text] = found if found is not None else _UNKNOWN_OWNER + len(known)
    return known[text]


def _uid_here(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        return None


def _time_ns(entry: dict[str, Any], manifest: Manifest) -> int:
    text = entry.get("timestamp")
    if text is None:
        return manifest.received_ns
    at_ns = (parse_time(text) - _EPOCH) // datetime.timedelta(microseconds=1) * 1000
    return max(-_TIME_MOST, min(at_ns, _TIME_MOST))


def _keyed(lines: Iterable[bytes]) -> Iterator[Item]:
    """Lines with their sort keys, and behind each a line for every folder above it."""
    told: set[bytes] = set()
    for line in lines:
        found = msgspec.json.decode(line, type=Line)
        path = normal(msgspec.json.decode(found.path)).encode()
        if not path:
            continue  # the base itself
        yield _key(path, found.kind != "d"), line
        folder = split(path)[0]
        while folder and folder not in told:
            if len(told) >= AT_ONCE:
                told.clear()
            told.add(folder)
            yield (*sort_key(*split(folder)), 2), msgspec.json.encode(["d", folder.decode(), {}])
            folder = split(folder)[0]


def _key(path: bytes, is_file: bool) -> Key:
    """Of the same path a folder that the manifest names comes first, then a folder that something lies in."""
    return (*sort_key(*split(path)), 3 if is_file else 1)
