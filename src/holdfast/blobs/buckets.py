"""Buckets: made, listed, changed, shared with others, deleted when they are empty.

What is promised: a bucket's name is given once on a server; it has one owner; what it holds counts for its owner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from holdfast.accounts.directory import Identity
from holdfast.blobs.names import checked_bucket, is_bucket, no_bucket
from holdfast.blobs.rights import ACTS, ADMIN, READS, WRITES, Seen, see
from holdfast.catalog import blobs as rows
from holdfast.catalog import people
from holdfast.catalog.blobs import EVERYONE, FILESYSTEMS, Bucket
from holdfast.catalog.database import Connection, Database
from holdfast.catalog.holdings import hold_accounts
from holdfast.catalog.people import Account
from holdfast.errors import Contradiction, Forbidden, NoAccount, UsageError

_LARGEST = 1 << 62


class Email(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As blobs' documents write it."""

    address: str = msgspec.field(default="", name="Address")
    name: str = msgspec.field(default="", name="Name")


class Owner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who owns a bucket."""

    email: Email = Email()


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """None: no limit but the account's."""

    bytes: int | None = None
    objects: int | None = None


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a bucket is to be. ``filesystem``: empty for the server's usual one. ``name``: in a file only."""

    name: str = ""
    owner: Owner | None = None
    filesystem: str = ""
    quota: Quota = Quota()


class Buckets:
    """See the module. Safe to share between threads. ``filesystems``: those there are, the usual one first."""

    def __init__(self, database: Database, filesystems: Iterable[str], now_ns: Callable[[], int]) -> None:
        self._database, self._filesystems, self._now_ns = database, tuple(filesystems), now_ns

    def create(self, by: Identity, name: str, policy: Policy) -> Bucket:
        """A new bucket. Contradiction when there is one of that name."""
        by.demand(WRITES)
        checked_bucket(name)
        with self._database.writing() as c:
            owner = self._owner(c, by, policy.owner)
            made = self._add(c, name, owner, policy)
            if made is None:
                raise Contradiction(f"There is a bucket {name!r} already.", "Choose another name.")
            self._note(c, by, "bucket made", name, f"for {owner.username}")
        return made

    def listed(self, by: Identity) -> list[Bucket]:
        """Those in which he may do something."""
        by.demand(READS)
        with self._database.reading() as c:
            return rows.list_buckets(c, None if "admin" in by.scopes else by.account)

    def about(self, by: Identity, name: str) -> Seen:
        by.demand(READS)
        with self._database.reading() as c:
            return see(c, by, name)

    def delete(self, by: Identity, name: str) -> Bucket:
        """Contradiction while there are blobs in it."""
        by.demand(WRITES)
        with self._database.writing() as c:
            bucket = self._held(c, by, name)
            if not rows.drop_bucket(c, bucket.id):
                raise Contradiction(f"There are blobs in the bucket {name!r}.", "Delete them first.")
            self._note(c, by, "bucket deleted", name)
        return bucket

    def change(self, by: Identity, name: str, quota: Quota) -> Bucket:
        """Another quota."""
        by.demand(WRITES)
        limits = _limits(quota)
        with self._database.writing() as c:
            bucket = self._held(c, by, name)
            rows.change_bucket(c, bucket.id, **limits)
            self._note(c, by, "bucket changed", name, f"{quota.bytes} bytes, {quota.objects} objects at most")
            return rows.bucket_by_id(c, bucket.id) or bucket

    # -- what others may -------------------------------------------------------------------------------------------

    def grants(self, by: Identity, name: str) -> dict[str, list[str]]:
        by.demand(READS)
        with self._database.reading() as c:
            return rows.list_grants(c, see(c, by, name).demand(ADMIN).id)

    def grant(self, by: Identity, name: str, granted: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
        """In place of what there was. NoAccount names one that is not there."""
        by.demand(WRITES)
        wanted = {username: _acts(username, acts) for username, acts in granted.items()}
        with self._database.writing() as c:
            bucket = self._held(c, by, name)
            numbers: dict[int | None, list[str]] = {}
            for username, acts in wanted.items():
                account = None if username == EVERYONE or "\0" in username else people.account_named(c, username)
                if username != EVERYONE and account is None:
                    raise NoAccount(f"There is no account {username!r}.", "Name accounts, or '*' for everyone.")
                if acts:
                    numbers[account.id if account else None] = acts
            rows.put_grants(c, bucket.id, numbers)
            shown = "; ".join(f"{username}: {', '.join(acts)}" for username, acts in wanted.items())
            self._note(c, by, "bucket granted", name, shown[:1000])
            return rows.list_grants(c, bucket.id)

    # -- policies as files -------------------------------------------------------------------------------------------

    def apply_policies(self, folder: str) -> None:
        """Make the buckets that the files in a folder describe, one in each; what is there stays. UsageError names a
        file that cannot be applied.
        """
        if not Path(folder).is_dir():
            raise UsageError(f"There is no folder of policies {folder}.", "Make it, or change [blobs] policies.")
        for file in sorted(Path(folder).iterdir()):
            if file.suffix in (".json", ".entpolicy") and file.is_file():
                self._apply(file)

    def _apply(self, file: Path) -> None:
        try:
            policy = msgspec.json.decode(file.read_bytes(), type=Policy)
            name = checked_bucket(policy.name or file.stem)
            email = policy.owner.email.address if policy.owner else ""
            with self._database.writing() as c:
                if rows.bucket_named(c, name) is None:
                    self._add(c, name, _by_email(c, email), policy)
        except (OSError, msgspec.MsgspecError) as e:
            raise UsageError(f"The policy {file} cannot be read: {e}.") from None
        except (UsageError, NoAccount) as e:
            raise UsageError(f"The policy {file}: {e}", e.hint) from None

    # -- both --------------------------------------------------------------------------------------------------------

    def _add(self, c: Connection, name: str, owner: Account, policy: Policy) -> Bucket | None:
        filesystem = policy.filesystem or self._filesystems[0]
        if filesystem not in self._filesystems:
            hint = "[blobs] object names the object store." if filesystem == rows.OBJECT else ""
            known = filesystem in FILESYSTEMS
            what = "is not set up here" if known else f"is none of {', '.join(FILESYSTEMS)}"
            raise UsageError(f"The file system {filesystem!r} {what}.", hint if known else "")
        number = rows.add_bucket(
            c, account=owner.id, name=name, filesystem=filesystem, created_ns=self._now_ns(), **_limits(policy.quota)
        )
        return None if number is None else rows.bucket_by_id(c, number)

    def _owner(self, c: Connection, by: Identity, owner: Owner | None) -> Account:
        """Whose a new bucket is to be: the caller's, or as an administrator says."""
        mine = people.account_by_id(c, by.account)
        if mine is None:
            raise NoAccount("Your account is gone.")
        email = owner.email.address if owner else ""
        if not email or email.lower() == mine.email.lower():
            return mine
        if "admin" not in by.scopes:
            raise Forbidden("Only administrators make buckets for others.", "Leave the owner out: it is yours then.")
        return _by_email(c, email)

    def _held(self, c: Connection, by: Identity, name: str) -> Bucket:
        """A bucket that he may administer, and nobody else changes until the transaction ends."""
        bucket = see(c, by, name).demand(ADMIN)
        hold_accounts(c, [bucket.account])
        again = see(c, by, name).demand(ADMIN)
        if again.id != bucket.id or not is_bucket(name):
            raise no_bucket(name)
        return again

    def _note(self, c: Connection, by: Identity, action: str, subject: str, detail: str = "") -> None:
        people.add_audit(
            c, at_ns=self._now_ns(), actor=by.username, address=by.address, action=action, subject=subject,
            detail=detail,
        )  # fmt: skip


def _by_email(c: Connection, email: str) -> Account:
    """NoAccount when none, or more than one, has that address."""
    found = people.accounts_with_email(c, email) if email and "\0" not in email else []
    if len(found) != 1:
        many = "More than one account has" if found else "No account has"
        raise NoAccount(f"{many} the e-mail address {email!r}.", "A bucket's owner is named by the account's.")
    return found[0]


def _limits(quota: Quota) -> dict[str, int | None]:
    for what, most in (("bytes", quota.bytes), ("objects", quota.objects)):
        if most is not None and not 0 <= most < _LARGEST:
            raise UsageError(f"A quota of {what} is a number from 0, or null for none.")
    return {"quota_bytes": quota.bytes, "quota_objects": quota.objects}


def _acts(username: str, acts: Iterable[str]) -> list[str]:
    given = list(acts)
    if unknown := [act for act in given if act not in ACTS]:
        raise UsageError(f"{username}: {unknown[0]!r} is nothing to grant.", f"Grant {', '.join(ACTS)}.")
    return [act for act in ACTS if act in given]
