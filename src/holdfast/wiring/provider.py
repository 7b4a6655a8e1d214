"""How we speak to an OpenID Connect provider: HTTP, verified, with limits."""

from __future__ import annotations

from collections.abc import Mapping

import httpx2

from holdfast.errors import ProviderFailed

_PATIENCE_S = 10
_MOST_BYTES = 1 << 20


def fetch(address: str, fields: Mapping[str, str] | None, headers: Mapping[str, str]) -> bytes:
    """Get an address, or post fields to it. Redirects are not followed: metadata says where things are."""
    method = "GET" if fields is None else "POST"
    content = bytearray()
    try:
        with (
            httpx2.Client(timeout=_PATIENCE_S, follow_redirects=False) as client,
            client.stream(method, address, data=fields, headers=dict(headers)) as answer,
        ):
            for piece in answer.iter_bytes():
                content += piece
                if len(content) > _MOST_BYTES:
                    raise ProviderFailed("The provider's answer is too long.")
    except (httpx2.HTTPError, httpx2.InvalidURL) as e:
        raise ProviderFailed(f"The provider cannot be reached: {type(e).__name__}.", "Try again later.") from None
    if answer.status_code != 200:
        raise ProviderFailed(f"The provider answered with the status {answer.status_code}.", "Begin again.")
    return bytes(content)
