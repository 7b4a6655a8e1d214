"""Manifests and files are given up.

What is promised: a deleted manifest is gone for its account at once; of its files those go that no other manifest of
the account names, and that nobody has sent again since; their space counts as free then, and what no snapshot needs any
more is freed by ``prune``. What is deleted here is deleted for the command line too: the manifest's snapshot goes.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator

import msgspec

from holdfast.accounts.directory import Identity
from holdfast.catalog import holdings, numbers, people, removals
from holdfast.catalog.database import Connection, Database
from holdfast.catalog.holdings import Manifest
from holdfast.catalog.removals import Deleted, Held
from holdfast.errors import Contradiction, Forbidden, HoldfastError, NoContent, ObjectMissing, StorageUnavailable
from holdfast.manifests.document import Line
from holdfast.manifests.manifests import Manifests
from holdfast.shelf.shelf import Shelf
from holdfast.shelf.sorting import sorted_on_disk

_SOME, _LINES = 500, 10_000
_STAYS = 1 << 62  # in the place of a deletion: a manifest that is there names the file

Naming = tuple[str, int]  # a file's hash, and by which deletion the manifest went that names it


class _Named(msgspec.Struct):
    """What an entry names."""

    hash: str


_decode_naming = msgspec.msgpack.Decoder(Naming).decode
_decode_line = msgspec.json.Decoder(Line).decode
_decode_named = msgspec.json.Decoder(_Named).decode


class Remover:
    """See the module. Safe to share between threads; ``give_up`` is one thread's, and ``on_delete`` wakes it."""

    def __init__(
        self,
        shelf: Shelf,
        manifests: Manifests,
        database: Database,
        folder: str,
        now_ns: Callable[[], int],
        on_delete: Callable[[], None],
    ) -> None:
        self._shelf, self._manifests, self._database = shelf, manifests, database
        self._folder, self._now_ns, self._on_delete = folder, now_ns, on_delete

    def delete(self, by: Identity, name: str, version: int | None) -> list[int]:
        """Delete a version of a manifest, or all of them; their numbers. NoContent when there is none, Forbidden for
        a snapshot of the command line.
        """
        with self._database.writing() as c:
            gone = removals.delete_manifests(c, by.account, name, version)
            if gone:
                shown = ", ".join(str(number) for number in gone)
                self._note(c, by, "manifest deleted", name, f"version {shown}")
        if not gone:
            self._manifests.named(by, name, version)  # raises when there is none
            raise Forbidden(f"{name!r} is a snapshot of the command line.", "`holdfast forget` removes it.")
        self._on_delete()
        return gone

    def forget_file(self, by: Identity, hash_: str) -> None:
        """Give up a file, or the parts of one that is on its way. NoContent when there is none, Contradiction when a
        manifest names it.
        """
        with self._database.writing() as c:
            holdings.hold_accounts(c, [by.account])
            parts = holdings.delete_parts(c, by.account, hash_)
            people.charge(c, by.account, -parts, 0)
            is_whole = holdings.file_of(c, by.account, hash_) is not None
        if is_whole:
            self._forget_whole(by, hash_)
        elif not parts:
            raise NoContent(f"You have nothing of a file {hash_}.")

    def _forget_whole(self, by: Identity, hash_: str) -> None:
        with self._database.reading() as c:
            held = removals.held(c, by.account)
        for manifest in held.manifests:
            if any(named == hash_ for named in self._named_by(manifest)):
                raise Contradiction(
                    f"Version {manifest.version} of your manifest {manifest.name!r} names the file {hash_}.",
                    "Delete that first: then its files go by themselves.",
                )
        with self._database.writing() as c:
            if removals.has_newer(c, by.account, held.newest) or held.receiving:
                raise StorageUnavailable("A manifest of yours is being received.", "Try again in a while.")
            self._drop(c, by.account, {hash_: _STAYS})
            self._note(c, by, "file deleted", hash_)
        self._on_delete()

    def give_up(self) -> int:
        """Give up what deleted manifests alone held, and drop them; how many were dropped. What goes wrong for one
        account is raised when the others are done.
        """
        with self._database.reading() as c:
            deleted = removals.deleted_manifests(c)
        dropped, failure = 0, None
        for account, some in itertools.groupby(deleted, key=lambda one: one.manifest.account):
            try:
                dropped += self._give_up(account or 0, list(some))
            except HoldfastError as e:
                failure = failure or e
        if failure:
            raise failure
        return dropped

    def _give_up(self, account: int, doomed: list[Deleted]) -> int:
        if not self._give_up_files(account, doomed):
            return 0
        return sum(self._drop_manifest(one.manifest) for one in doomed)

    # -- what is no longer named -------------------------------------------------------------------------------------

    def _give_up_files(self, account: int, doomed: list[Deleted]) -> bool:
        """False when a manifest came meanwhile, which may name what was to go: then it is looked at again."""
        with self._database.reading() as c:
            held = removals.held(c, account)
        if held.receiving:
            return False
        unnamed = self._unnamed(doomed, held)
        while some := dict(itertools.islice(unnamed, _SOME)):
            self._shelf.demand_running()
            with self._database.writing() as c:
                if removals.has_newer(c, account, held.newest):
                    return False
                self._drop(c, account, some)
        return True

    def _unnamed(self, doomed: list[Deleted], held: Held) -> Iterator[Naming]:
        """The files that only deleted manifests name, and the last deletion of one of those."""
        going = ((hash_, one.deletion) for one in doomed for hash_ in self._named_by(one.manifest))
        staying = ((hash_, _STAYS) for manifest in held.manifests for hash_ in self._named_by(manifest))
        namings = heapq.merge(self._in_order(going), self._in_order(staying))
        for hash_, same in itertools.groupby(namings, key=lambda naming: naming[0]):
            last = max(deletion for _, deletion in same)
            if last != _STAYS:
                yield hash_, last

    def _in_order(self, namings: Iterable[Naming]) -> Iterator[Naming]:
        return sorted_on_disk(namings, _decode_naming, self._folder)

    def _named_by(self, manifest: Manifest) -> Iterator[str]:
        for number, line in enumerate(map(_decode_line, self._manifests.lines(manifest))):
            if number % _LINES == 0:
                self._shelf.demand_running()
            if line.kind == "f":
                yield _decode_named(line.entry).hash.lower()

    def _drop(self, c: Connection, account: int, deletions: dict[str, int]) -> None:
        count, size = removals.delete_files(c, account, deletions)
        people.charge(c, account, -size, -count)
        numbers.owe_merging(c)

    def _drop_manifest(self, manifest: Manifest) -> bool:
        """False when it has got another snapshot meanwhile: then it is left for the next time."""
        if manifest.snapshot:
            with contextlib.suppress(ObjectMissing):
                self._shelf.repo.storage.delete(f"snapshots/{manifest.snapshot}")
        more = True
        while more:
            with self._database.writing() as c:
                more = removals.drop_wanted(c, manifest.id)
        with self._database.writing() as c:
            holdings.hold_accounts(c, [manifest.account or 0])
            numbers.owe_merging(c)
            if not removals.drop_manifest(c, manifest):
                return False
            people.charge(c, manifest.account or 0, -manifest.size, -1)
            return True

    def _note(self, c: Connection, by: Identity, action: str, subject: str, detail: str = "") -> None:
        people.add_audit(
            c, at_ns=self._now_ns(), actor=by.username, address=by.address, action=action, subject=subject,
            detail=detail,
        )  # fmt: skip
