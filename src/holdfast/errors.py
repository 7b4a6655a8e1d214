"""The error tree. Every failure a user can meet is one of these; edges translate them, nobody else does.

::

    HoldfastError                     code              exit  http
    ├── UsageError                    usage                2   400
    ├── InterruptedByUser             interrupted        130   499
    ├── StorageError                  storage              1   502
    │   ├── ObjectMissing             missing              1   404
    │   ├── ObjectExists              exists               1   409
    │   ├── StorageDenied             denied               1   403
    │   ├── StorageFull               full                 1   507
    │   └── StorageUnavailable        unavailable          1   503
    ├── RepositoryError               repository           1   500
    │   ├── NoRepository              no-repository       10   404
    │   ├── RepositoryExists          repository-exists    1   409
    │   ├── UnknownVersion            unknown-version      1   501
    │   ├── WrongKey                  wrong-key           12   403
    │   ├── KeyCannotRead             key-cannot-read     12   403
    │   ├── Busy                      busy                11   409
    │   ├── Damaged                   damaged              1   500
    │   ├── SnapshotMissing           no-snapshot          1   404
    │   └── Incomplete                incomplete           3   500
    ├── ContentError                  content              1   400
    │   ├── NoContent                 no-content           1   404
    │   ├── WrongContent              wrong-content        1   422
    │   ├── Contradiction             contradiction        1   409
    │   ├── ConditionFailed           condition            1   412
    │   ├── TooLarge                  too-large            1   413
    │   ├── OutOfRange                out-of-range         1   416
    │   ├── BrokenOff                 broken-off           1   400
    │   ├── Gone                      gone                 1   410
    │   └── WrongPassword             wrong-password       1   401
    └── AccountError                  account              1   400
        ├── NotLoggedIn               not-logged-in        1   401
        ├── Forbidden                 forbidden            1   403
        ├── NoAccount                 no-account           1   404
        ├── AccountExists             account-exists       1   409
        ├── TooManyAttempts           too-many-attempts    1   429
        ├── ProviderFailed            provider             1   502
        └── QuotaFull                 quota                1   507

An error's text is one sentence that names the thing; its ``hint`` is one that says what to do. Neither holds a
secret. ``code`` is stable: programs may depend on it.
"""

from __future__ import annotations


class HoldfastError(Exception):
    """The root: ``str()`` gives the sentence, ``hint`` what to do about it (may be empty)."""

    code = "failed"
    exit_status = 1
    http_status = 500

    def __init__(self, sentence: str, hint: str = "") -> None:
        super().__init__(sentence)
        self.hint = hint


class UsageError(HoldfastError):
    """The caller asked for something that makes no sense as it stands."""

    code = "usage"
    exit_status = 2
    http_status = 400


class InterruptedByUser(HoldfastError):
    """The user, or a signal, ended the work; what was stored stays stored."""

    code = "interrupted"
    exit_status = 130
    http_status = 499


class StorageError(HoldfastError):
    """A storage did not do what it was asked."""

    code = "storage"
    http_status = 502


class ObjectMissing(StorageError):
    """No object of that name."""

    code = "missing"
    http_status = 404


class ObjectExists(StorageError):
    """An object of that name is there already; ``put`` never replaces."""

    code = "exists"
    http_status = 409


class StorageDenied(StorageError):
    """The storage refuses: permissions, a read-only file system, an append-only server."""

    code = "denied"
    http_status = 403


class StorageFull(StorageError):
    """No space, no inodes, or no quota left."""

    code = "full"
    http_status = 507


class StorageUnavailable(StorageError):
    """The storage failed in a way that may pass: worth a retry."""

    code = "unavailable"
    http_status = 503


class RepositoryError(HoldfastError):
    """Something is wrong with a repository or with what was asked of it."""

    code = "repository"


class NoRepository(RepositoryError):
    """There is no repository at that place."""

    code = "no-repository"
    exit_status = 10
    http_status = 404


class RepositoryExists(RepositoryError):
    """``init`` met a repository that is there already."""

    code = "repository-exists"
    http_status = 409


class UnknownVersion(RepositoryError):
    """The repository was written by a newer Holdfast."""

    code = "unknown-version"
    http_status = 501


class WrongKey(RepositoryError):
    """No key of the repository opens with this password or key file."""

    code = "wrong-key"
    exit_status = 12
    http_status = 403


class KeyCannotRead(RepositoryError):
    """A write-only key was used for something that needs to read."""

    code = "key-cannot-read"
    exit_status = 12
    http_status = 403


class Busy(RepositoryError):
    """Somebody else's work must end first."""

    code = "busy"
    exit_status = 11
    http_status = 409


class Damaged(RepositoryError):
    """Stored bytes are not what was stored: they failed verification and were not used."""

    code = "damaged"


class SnapshotMissing(RepositoryError):
    """No snapshot, or no path in a snapshot, answers to that name."""

    code = "no-snapshot"
    http_status = 404


class Incomplete(RepositoryError):
    """The work was done, but some files could not be read or written; they were named."""

    code = "incomplete"
    exit_status = 3


class ContentError(HoldfastError):
    """Something is wrong with what was sent, or asked for, over HTTP."""

    code = "content"
    http_status = 400


class NoContent(ContentError):
    """The account has no file or manifest of that name, or not all of it yet."""

    code = "no-content"
    http_status = 404


class WrongContent(ContentError):
    """The bytes are not the ones their hash promises; nothing of them was kept."""

    code = "wrong-content"
    http_status = 422


class Contradiction(ContentError):
    """What was sent contradicts what is known already."""

    code = "contradiction"
    http_status = 409


class ConditionFailed(ContentError):
    """What the request made a condition is not so: somebody else was there before."""

    code = "condition"
    http_status = 412


class TooLarge(ContentError):
    """It is larger than this server takes."""

    code = "too-large"
    http_status = 413


class OutOfRange(ContentError):
    """No byte of the range that was asked for exists. ``size``: of the whole."""

    code = "out-of-range"
    http_status = 416

    def __init__(self, sentence: str, hint: str = "", *, size: int = 0) -> None:
        super().__init__(sentence, hint)
        self.size = size


class BrokenOff(ContentError):
    """The body ended before all of it had come."""

    code = "broken-off"


class Gone(ContentError):
    """It was there, and will not be again."""

    code = "gone"
    http_status = 410


class WrongPassword(ContentError):
    """What was asked for has a password, and none or another one was given."""

    code = "wrong-password"
    http_status = 401


class AccountError(HoldfastError):
    """Something is wrong with an account or with what was asked of it."""

    code = "account"
    http_status = 400


class NotLoggedIn(AccountError):
    """Nobody is logged in, or what was shown to prove it is wrong, has ended or was revoked."""

    code = "not-logged-in"
    http_status = 401


class Forbidden(AccountError):
    """Somebody is logged in who may not do this."""

    code = "forbidden"
    http_status = 403


class NoAccount(AccountError):
    """No account, or nothing of this account, answers to that name."""

    code = "no-account"
    http_status = 404


class AccountExists(AccountError):
    """The name is taken."""

    code = "account-exists"
    http_status = 409


class TooManyAttempts(AccountError):
    """Too many log-ins failed; ``retry_after`` says after how many seconds the next one is heard."""

    code = "too-many-attempts"
    http_status = 429

    def __init__(self, sentence: str, hint: str = "", *, retry_after: int = 60) -> None:
        super().__init__(sentence, hint)
        self.retry_after = retry_after


class ProviderFailed(AccountError):
    """The outside provider of log-ins cannot be reached, or what it says does not hold."""

    code = "provider"
    http_status = 502


class QuotaFull(AccountError):
    """The account may not store so much."""

    code = "quota"
    http_status = 507
