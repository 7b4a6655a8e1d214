"""From an address to a storage. A scheme's module is imported only when an address asks for it.

===============================  =================================================  ===========
address                          what it is                                         module
===============================  =================================================  ===========
``/path``, ``path``, ``~/path``  a folder                                           ``local``
``s3:``                          a bucket of S3                                     ``s3``
``gs:``, ``az:``                 a bucket of Google's or Azure's                    ``buckets``
``swift:``                       a container of OpenStack Swift                     ``swift``
``sftp:``                        a folder of another machine, over SSH              ``sftp``
``rest:http…``, ``https:``       a REST server of restic's protocol, or a vault     ``rest``
===============================  =================================================  ===========

Each module has ``open_at(address, access)``: a storage, or a UsageError that says how such an address is written. It
asks nothing of the network yet. Passwords may stand in an address, but never in what a storage calls its ``place``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from holdfast.errors import UsageError
from holdfast.storage.base import Storage
from holdfast.storage.local import LocalStorage

_MODULES = {
    "s3": "s3",
    **dict.fromkeys(("gs", "az"), "buckets"),
    "swift": "swift",
    "sftp": "sftp",
    **dict.fromkeys(("rest", "http", "https"), "rest"),
}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+]*):")


class Login(Protocol):
    """How one is known to a Holdfast server."""

    def token(self) -> str:
        """The bearer token to show."""
        ...

    def renew(self, refused: str) -> bool:
        """The server has refused that token: whether there is another one now."""
        ...


def _nowhere(address: str) -> tuple[str, Login] | None:
    return None


@dataclass(frozen=True)
class Access:
    """What a storage needs of the outside. ``variables``: the usual environment variables by their names, from the
    environment and the profile; ``home``: the user's home folder, for profile files, keys and known hosts; ``login``:
    the address of the server that an address belongs to, and the log-in there, None where nobody is logged in.
    """

    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    home: Path = Path("/nonexistent")
    connections: int = 5  # that one storage may use at once
    login: Callable[[str], tuple[str, Login] | None] = _nowhere

    def get(self, *names: str) -> str:
        """The first of these variables that is set and not empty; else an empty string."""
        return next((v for n in names if (v := self.variables.get(n))), "")


def scheme_of(address: str) -> str:
    """The scheme of an address; empty for a folder. A path may hold colons after its first slash."""
    found = _SCHEME.match(address)
    return found[1] if found else ""


def is_remote(address: str) -> bool:
    return bool(scheme_of(address))


def open_storage(address: str, access: Access) -> Storage:
    """The storage at an address, by itself: nothing is tried again, kept or limited yet."""
    scheme = scheme_of(address)
    if not scheme:
        return LocalStorage(Path(address).expanduser())
    if scheme not in _MODULES:
        raise UsageError(
            f"The address {address.partition(':')[0] + ':…'!r} is of a kind this Holdfast does not know.",
            "Give a folder's path, or an address with s3:, gs:, az:, swift:, sftp: or rest:.",
        )
    try:
        module = importlib.import_module(f"holdfast.storage.{_MODULES[scheme]}")
    except ModuleNotFoundError as e:
        raise UsageError(
            f"Storages with {scheme}: need the Python package of {e.name}, which is not installed.",
            "Install it with: pip install 'holdfast[storages]'",
        ) from None
    opened: Storage = module.open_at(address, access)
    return opened
