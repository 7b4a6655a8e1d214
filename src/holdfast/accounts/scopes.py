"""What may be done with a log-in: scopes, one read and one write for each face, and ``admin``.

A password or a session grants everything its account may; a token grants the scopes it was made with, and never more
than its account may at the time it is used.
"""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.errors import UsageError

FACES = ("files", "blobs", "shares", "jobs", "vaults")  # manifests are files; containers and the agent are jobs
ADMIN = "admin"
USER_SCOPES = frozenset(f"{face}:{act}" for face in FACES for act in ("read", "write"))
ALL_SCOPES = USER_SCOPES | {ADMIN}


def scopes_of(role: str) -> frozenset[str]:
    """Everything an account of that role may."""
    return ALL_SCOPES if role == "admin" else USER_SCOPES


def checked(scopes: Iterable[str]) -> frozenset[str]:
    """The scopes as asked for; UsageError names one that does not exist, or says that there are none."""
    found = frozenset(scopes)
    if unknown := sorted(found - ALL_SCOPES):
        raise UsageError(f"There is no scope {unknown[0]!r}.", f"Scopes are {', '.join(sorted(ALL_SCOPES))}.")
    if not found:
        raise UsageError("At least one scope must be named.", f"Scopes are {', '.join(sorted(ALL_SCOPES))}.")
    return found
