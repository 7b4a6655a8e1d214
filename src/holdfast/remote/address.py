"""A server's address: one spelling for each server, and no password or token sent where anybody can read along."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from holdfast.errors import UsageError

_PORTS = {"http": 80, "https": 443}


def base_url(text: str, *, insecure: bool = False) -> str:
    """The address that a server's other addresses begin with, in the one spelling it is kept under. UsageError when
    it is none, or when it is plain http to another machine and that was not allowed (``insecure``).
    """
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    if parts.scheme not in _PORTS or not host or not _is_plain(text):
        raise UsageError("A server's address is like https://backup.example.org.", "Give it with http:// or https://.")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            "A server's address holds no password, query or fragment.", "Run `holdfast login` to be known to it."
        )
    if parts.scheme == "http" and not insecure and not _is_loopback(host):
        raise UsageError(
            f"http://{host} is not encrypted: whoever is on the way reads your token, and then your backups.",
            "Use https://, or give --insecure if that network is yours alone.",
        )
    shown = f"[{host}]" if ":" in host else host
    if port is not None and port != _PORTS[parts.scheme]:
        shown += f":{port}"
    return f"{parts.scheme}://{shown}{parts.path.rstrip('/')}"


def _is_plain(text: str) -> bool:
    return text.isprintable() and " " not in text.strip()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
