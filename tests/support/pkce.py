"""PKCE as a client does it (RFC 7636): a verifier, and the challenge made from it."""

from __future__ import annotations

import base64
import hashlib
import secrets


def pair() -> tuple[str, str]:
    """A new verifier and its S256 challenge."""
    verifier = secrets.token_urlsafe(48)
    return verifier, challenge_of(verifier)


def challenge_of(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
