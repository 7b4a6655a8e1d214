"""How vaults and what lies in them are called. What a request names passes here before anything is looked for."""

from __future__ import annotations

import re
from typing import NamedTuple

from holdfast.errors import NoContent, UsageError
from holdfast.storage.base import CONFIG, FOLDERS

_VAULT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_ID = re.compile(r"[0-9a-f]{64}")
_TAKEN = frozenset({CONFIG, *FOLDERS})  # they stand where a vault's name may stand


class Where(NamedTuple):
    """What a request is about: a vault (both empty), a ``folder`` of it, or the object ``name`` (as in a storage)."""

    owner: str
    vault: str
    folder: str = ""
    name: str = ""


def demand_vault_name(name: str) -> str:
    """The name, if a vault can have it; UsageError otherwise."""
    if not _VAULT.fullmatch(name) or name in _TAKEN:
        raise UsageError(
            "A vault's name has 1 to 64 letters, digits, dots, dashes or underlines, a letter or digit first.",
            f"It is none of {', '.join(sorted(_TAKEN))}.",
        )
    return name


def are_names(owner: str, vault: str) -> bool:
    """Whether there may be such a vault of such an account; not every text fits a database."""
    return bool(_OWNER.fullmatch(owner) and _VAULT.fullmatch(vault)) and vault not in _TAKEN


def parse(path: str, asking: str) -> Where:
    """What ``VAULT/…`` or ``OWNER/VAULT/…`` means (decoded, and never decoded again) when ``asking`` asks it.

    NoContent for what no vault can have, UsageError for an object's name that is none.
    """
    steps = path.removesuffix("/").split("/")
    if len(steps) == 1 or steps[1] in _TAKEN:
        steps = [asking, *steps]
    owner, vault, *rest = steps
    if not are_names(owner, vault) or len(rest) > 2:
        raise _nothing()
    if not rest:
        return Where(owner, vault)
    if rest == [CONFIG]:
        return Where(owner, vault, name=CONFIG)
    if rest[0] not in FOLDERS:
        raise _nothing()
    if len(rest) == 1:
        return Where(owner, vault, folder=rest[0])
    if not _ID.fullmatch(rest[1]):
        raise UsageError("An object is named by 64 hex digits in lower case: the SHA-256 of its bytes.")
    return Where(owner, vault, name=f"{rest[0]}/{rest[1]}")


def _nothing() -> NoContent:
    return NoContent("No vault has such a thing.", f"In a vault are {', '.join(sorted(_TAKEN))}.")
