"""Conditions of a request, as HTTP has them: what a blob must be, or must not be, for something to be done to it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from holdfast.catalog.blobs import Blob
from holdfast.errors import ConditionFailed

ANY = "*"
_TAG = re.compile(r'(?:W/)?"([^"]*)"')


@dataclass(frozen=True)
class Conditions:
    """``match``: it must have one of these tags (ANY: it must be there). ``none``: it must have none of them (ANY: it
    must not be there). None: no such condition. Tags are SHA-1 in hex digits.
    """

    match: frozenset[str] | None = None
    none: frozenset[str] | None = None

    def demand(self, blob: Blob | None) -> None:
        """ConditionFailed when one does not hold."""
        if self.match is not None and not _has(blob, self.match):
            raise ConditionFailed("The blob is not the one that If-Match names.", "Get it again.")
        if self.none is not None and _has(blob, self.none):
            raise ConditionFailed("The blob is there: If-None-Match excludes that.", "Get it first.")


def tags(header: str | None) -> frozenset[str] | None:
    """The tags of a header; None when there is none."""
    if header is None:
        return None
    if header.strip() == ANY:
        return frozenset([ANY])
    found = _TAG.findall(header)
    return frozenset(tag.lower() for tag in found or [part.strip() for part in header.split(",")])


def _has(blob: Blob | None, wanted: frozenset[str]) -> bool:
    return blob is not None and (ANY in wanted or blob.sha1 in wanted)
