"""One-time shares: put in, redeemed, listed, ended.

What is promised: of all who redeem a share at once as many win as it has downloads left, and no more; a download that
breaks off before its last byte is given back; one that was complete is never given again. A server that is killed
gives back what it had claimed (LEASE_NS after it renewed it last), unless the last byte may have been sent. Nothing is
sent that is not what was put in: its hash is checked before the first byte, and again on the way. Who knows a share's
address has it: so only the address's digest is kept, and it is told to nobody but who made it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from holdfast.accounts import guard
from holdfast.accounts.directory import Identity
from holdfast.accounts.passwords import Passwords
from holdfast.catalog import people
from holdfast.catalog import shares as rows
from holdfast.catalog.database import Database
from holdfast.catalog.shares import Share
from holdfast.errors import (
    Damaged,
    Gone,
    HoldfastError,
    NoContent,
    QuotaFull,
    StorageError,
    StorageFull,
    StorageUnavailable,
    TooLarge,
    WrongPassword,
)
from holdfast.shares.gone import Gone as Memory
from holdfast.storage.base import Buffer
from holdfast.storage.local import Incoming, Opened
from holdfast.storage.loose import LooseFiles

READS, WRITES = "shares:read", "shares:write"
MOST_BYTES = 16 << 20
MOST_WRONG, MOST_WRONG_OF_ALL = 5, 50  # passwords: from one address, from all
LEASE_NS = 60 * 1_000_000_000
_PIECE = 1 << 20
_ID = re.compile(r"[0-9a-f]{32}")

Tell = Callable[[str, Exception], None]


class Wish(NamedTuple):
    """What is said of a file that is shared; all of it was checked (``wishes``). ``password``: empty for none.
    ``lasts_ns``: None for ever.
    """

    name: str
    type: str
    password: str = ""
    lasts_ns: int | None = None
    downloads: int = 1


class Made(NamedTuple):
    """A new share. ``id``: what its address ends in, told here and never again."""

    id: str
    number: int


@dataclass(frozen=True)
class Seen:
    """A share as who knows its address sees it."""

    share: Share
    digest: bytes

    @property
    def has_password(self) -> bool:
        return self.share.password is not None


class Shares:
    """See the module. Safe to share between threads. ``tell`` hears of a file that cannot be used. ``running``: the
    downloads that are under way here.
    """

    def __init__(
        self,
        database: Database,
        files: LooseFiles,
        passwords: Passwords,
        gone: Memory,
        now_ns: Callable[[], int],
        tell: Tell,
        *,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._database, self._files, self._passwords, self._gone = database, files, passwords, gone
        self.now_ns, self.tell = now_ns, tell
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        self._running: set[str] = set()

    @property
    def running(self) -> set[str]:
        with self._lock:
            return set(self._running)

    # -- putting in ------------------------------------------------------------------------------------------------

    def begin(self, by: Identity, size: int | None = None) -> Upload:
        """Take a file of about that size (None: unknown). QuotaFull when there is no room for it."""
        by.demand(WRITES)
        with self._database.reading() as c:
            account = people.account_by_id(c, by.account)
        if account is None or _is_full(account, size or 0):
            raise _quota_full(by)
        with _told(self.tell):
            name, incoming = self._files.begin()
        return Upload(self, by, name, incoming)

    def add(self, by: Identity, wish: Wish, file: str, size: int, digest: bytes) -> Made:
        """For an upload whose file is durable."""
        password = self._passwords.hash(wish.password, least=1) if wish.password else None
        id_, now = secrets.token_hex(16), self.now_ns()
        share = Share(
            id=0, account=by.account, name=wish.name, type=wish.type, size=size, hash=digest, file=file,
            password=password, downloads=wish.downloads, taken=0, claimed=0, created_ns=now,
            expires_ns=None if wish.lasts_ns is None else now + wish.lasts_ns, ended_ns=None,
        )  # fmt: skip
        with self._database.writing() as c:
            number = rows.add_share(c, share, _digest(id_))
            if number is None:
                raise _quota_full(by)
        return Made(id_, number)

    def remove_file(self, name: str) -> None:
        self._files.remove(name)

    # -- redeeming -------------------------------------------------------------------------------------------------

    def look(self, id_: str) -> Seen:
        """NoContent when there never was such a share, Gone when nobody gets it any more. Gone, too, while others
        download as often as it may be: that may pass.
        """
        if not _ID.fullmatch(id_):
            raise _no_share()
        digest = _digest(id_)
        if self._gone.knows(digest):
            raise _gone()
        with self._database.reading() as c:
            share = rows.share_by_digest(c, digest)
        if share is None:
            raise _no_share()
        if share.has_ended(self.now_ns()):
            self._gone.note(digest)
            raise _gone()
        if share.taken + share.claimed >= share.downloads:
            raise _under_way()
        return Seen(share, digest)

    def prove(self, id_: str, password: str, address: str) -> Seen:
        """Look, and check the password. WrongPassword when it is none or another one, after the same time; after some
        of those TooManyAttempts for a while, whatever is tried.
        """
        seen = self.look(id_)
        if seen.share.password is None:
            return seen
        here, everywhere = f"share {seen.share.id} {guard.source_of(address)}", f"share {seen.share.id}"
        limits = {here: MOST_WRONG, everywhere: MOST_WRONG_OF_ALL}
        with self._database.reading() as c:
            failed = guard.demand_calm_of(c, limits, self.now_ns(), _TOO_MANY)
        if self._passwords.verify(password, seen.share.password):
            if here in failed:
                with self._database.writing() as c:
                    people.forget_failures(c, [here])
            return seen
        if password:  # who gives none has guessed nothing
            with self._database.writing() as c:
                now = self.now_ns()
                people.hold_failures(c, list(limits), now)
                guard.demand_calm_of(c, limits, now, _TOO_MANY)  # many at once guess no more than one after another
                guard.count_failure_of(c, limits, now)
        raise WrongPassword("That is not the share's password.", "Ask whoever sent you the link.")

    def take(self, seen: Seen) -> Download:
        """One download of a share that was looked at, and proven. Gone when there is none left. Damaged, and it is
        given back, when the file is not what was put in.
        """
        claim = secrets.token_hex(16)
        with self._lock:
            self._running.add(claim)
        try:
            with self._database.writing() as c:
                if not rows.claim(c, seen.share.id, claim, self.now_ns()):
                    raise _under_way()
        except BaseException:
            with self._lock:
                self._running.discard(claim)
            raise
        try:
            return Download(self, seen, claim, self._opened(seen.share))
        except BaseException:
            self.end_claim(claim, taken=False)
            raise

    def _opened(self, share: Share) -> Opened:
        """The file, whose bytes were checked."""
        try:
            opened = self._files.open(share.file or "")
            try:
                if opened.info.size != share.size or _hash_of(opened) != share.hash:
                    raise Damaged(f"The file of share {share.id} is not what was put in.")
            except BaseException:
                opened.close()
                raise
        except HoldfastError as e:
            self.tell(f"hand out share {share.id}", e)
            raise Damaged("The file is damaged; it was not sent.", "Ask whoever shared it for another one.") from None
        return opened

    def make_final(self, claim: str) -> None:
        with self._database.writing() as c:
            if not rows.make_final(c, claim):
                raise _gone()

    def end_claim(self, claim: str, *, taken: bool) -> None:
        try:
            with self._database.writing() as c:
                rows.end_claim(c, claim, self.now_ns(), taken=taken)
        finally:
            with self._lock:
                self._running.discard(claim)

    # -- for who made them -----------------------------------------------------------------------------------------

    def listed(self, by: Identity, *, limit: int = 100, before: int | None = None, all_: bool = False) -> list[Share]:
        """His own, the newest first; those that have ended only with ``all_``."""
        by.demand(READS)
        with self._database.reading() as c:
            return rows.list_shares(c, by.account, limit, before, all_=all_)

    def end(self, by: Identity, number: int) -> None:
        """Nobody gets it any more. NoContent when he has no such share."""
        by.demand(WRITES)
        with self._database.writing() as c:
            if rows.share_of(c, by.account, number) is None:
                raise NoContent(f"You have no share {number}.", "`GET /shares` lists those you have.")
            rows.end_share(c, number, self.now_ns())


@contextlib.contextmanager
def _told(tell: Tell) -> Iterator[None]:
    """Where files lie is no client's business: the log hears it, he hears that it cannot be done."""
    try:
        yield
    except StorageError as e:
        tell("keep a shared file", e)
        if isinstance(e, StorageFull):
            raise StorageFull("The server's disk is full.", "Tell its administrator.") from None
        raise StorageUnavailable("The server cannot keep the file.", "Tell its administrator.") from None


class Upload:
    """A file on its way in: ``feed`` its pieces, then ``finish`` or ``abandon``. One thread's at a time."""

    def __init__(self, shares: Shares, by: Identity, name: str, incoming: Incoming) -> None:
        self._shares, self._by, self._name, self._incoming = shares, by, name, incoming
        self._hasher, self._size = hashlib.sha256(), 0

    def feed(self, piece: Buffer) -> None:
        """TooLarge: then it is to be abandoned."""
        self._size += len(piece)
        if self._size > self._shares.most_bytes:
            raise TooLarge(f"A shared file has at most {self._shares.most_bytes} bytes.")
        with _told(self._shares.tell):
            self._incoming.write(piece)
        self._hasher.update(piece)

    def finish(self, wish: Wish) -> Made:
        """Durable when it returns. QuotaFull when there is no room; then nothing is kept."""
        with _told(self._shares.tell):
            self._incoming.publish()
        try:
            return self._shares.add(self._by, wish, self._name, self._size, self._hasher.digest())
        except BaseException:
            with contextlib.suppress(StorageError):  # what is left then is removed when the server starts
                self._shares.remove_file(self._name)
            raise

    def abandon(self) -> None:
        """Nothing is kept. It may be called twice, and after ``finish``."""
        self._incoming.abandon()


class Download:
    """A share that somebody has claimed. He reads ``pieces``, calls ``make_final`` before the last byte leaves, and
    then ``end``. One thread's at a time.
    """

    def __init__(self, shares: Shares, seen: Seen, claim: str, opened: Opened) -> None:
        self.share = seen.share
        self._shares, self._claim, self._opened = shares, claim, opened
        self._ended = False

    def pieces(self) -> Generator[bytes, None, None]:
        """The content, but for its last byte, then that. Damaged before the last one when the file has changed since
        it was checked.
        """
        hasher, end = hashlib.sha256(), self.share.size
        for start in range(0, end, _PIECE):
            piece = self._opened.read(start, min(_PIECE, end - start))
            hasher.update(piece)
            if start + len(piece) < end:
                yield piece
                continue
            if not hmac.compare_digest(hasher.digest(), self.share.hash):
                raise Damaged(f"The file of share {self.share.id} has changed while it was sent.")
            if len(piece) > 1:
                yield piece[:-1]
            yield piece[-1:]

    def make_final(self) -> None:
        """From now on the last byte may have been sent. Gone when the claim has lapsed."""
        self._shares.make_final(self._claim)

    def end(self, *, taken: bool) -> None:
        """It counts, or it is given back. What is said first counts."""
        if not self._ended:
            self._ended = True
            self._opened.close()
            self._shares.end_claim(self._claim, taken=taken)


_TOO_MANY = "Too many wrong passwords were tried."


def _digest(id_: str) -> bytes:
    return hashlib.sha256(id_.encode()).digest()


def _hash_of(opened: Opened) -> bytes:
    hasher, end = hashlib.sha256(), opened.info.size
    for start in range(0, end, _PIECE):
        hasher.update(opened.read(start, min(_PIECE, end - start)))
    return hasher.digest()


def _is_full(account: people.Account, size: int) -> bool:
    full = account.quota_bytes is not None and account.used_bytes + size > account.quota_bytes
    return full or (account.quota_objects is not None and account.used_objects + 1 > account.quota_objects)


def _quota_full(by: Identity) -> QuotaFull:
    return QuotaFull(f"The quota of {by.username} is full.", "Delete something, or ask an administrator for more.")


def _no_share() -> NoContent:
    return NoContent("There is no such share.", "Is all of the link there?")


def _gone() -> Gone:
    return Gone("The file is gone.", "It was downloaded as often as it may be, has expired, or was taken back.")


def _under_way() -> Gone:
    """All downloads that there may be are under way, or were just now."""
    return Gone("The file is gone.", "It was downloaded as often as it may be, or is being downloaded just now.")
