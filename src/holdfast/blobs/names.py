"""How buckets and blobs may be called.

A bucket's name stands in addresses as it is. A key is any text; nothing in it is ever resolved as a path: ``a//b`` and
``a/`` are keys like others; ``.`` and ``..`` between slashes are refused, for programs on the way would resolve them.
"""

from __future__ import annotations

import re

from holdfast.errors import NoContent, UsageError

MOST_KEY = 1024  # bytes, as with S3
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def checked_bucket(name: str) -> str:
    """UsageError when a bucket may not be called that."""
    if not _BUCKET.fullmatch(name):
        raise UsageError(
            "A bucket's name is 1 to 63 letters, digits, '.', '_' and '-', and begins with a letter or digit.",
            "Choose another name.",
        )
    return name


def is_bucket(name: str) -> bool:
    return bool(_BUCKET.fullmatch(name))


def checked_key(key: str) -> bytes:
    """A key as it is stored. UsageError when no blob may be called that."""
    stored = encoded(key)
    if not stored or len(stored) > MOST_KEY:
        raise UsageError(f"A key has 1 to {MOST_KEY} bytes of UTF-8; this one has {len(stored)}.", "Choose another.")
    if b"\0" in stored or any(segment in (".", "..") for segment in key.split("/")):
        raise UsageError("A key has no NUL, and no '.' or '..' between slashes.", "Choose another key.")
    return stored


def encoded(text: str) -> bytes:
    """UTF-8; UsageError for what is none."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UsageError("The key is no text.", "Percent-encode it as UTF-8.") from None


def no_bucket(name: str) -> NoContent:
    return NoContent(f"There is no bucket {name!r}.", f"Make it: `PUT /{name}`." if is_bucket(name) else "")


def no_blob(bucket: str, key: bytes) -> NoContent:
    return NoContent(f"There is no blob {key.decode(errors='replace')!r} in the bucket {bucket!r}.")
