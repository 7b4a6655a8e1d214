"""``/shares``: the shares that one has made, to see and to end them. Their addresses are not told here, either."""

from __future__ import annotations

import datetime
from typing import Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel

from holdfast.accounts.directory import Identity
from holdfast.catalog.shares import Share
from holdfast.errors import NoContent
from holdfast.faces.contract import failing_behind_the_gate
from holdfast.faces.gate import Gate
from holdfast.shares.shares import Shares

_TAGS: list[Any] = ["shares"]
_LARGEST = (1 << 53) - 1


class ShareAbout(BaseModel):
    """``taken``: how many downloads there were. ``state``: ``ended`` when nobody gets it any more; ``stored``: whether
    its file is still here and counts.
    """

    number: int
    name: str
    type: str
    size: int
    password: bool
    downloads: int
    taken: int
    state: Literal["open", "ended"]
    stored: bool
    created: datetime.datetime
    expires: datetime.datetime | None


class SharesAbout(BaseModel):
    """``next``: what to say as ``before`` for those that are older; null: there are none."""

    shares: list[ShareAbout]
    next: int | None


def router(shares: Shares, gate: Gate) -> APIRouter:
    """The routes of ``/shares``."""
    routes = APIRouter(tags=_TAGS)

    @routes.get("/shares", summary="One's own shares", responses=failing_behind_the_gate())
    async def list_shares(
        limit: int = Query(100, ge=1, le=1000),
        before: int | None = Query(None, ge=1, le=_LARGEST, description="Only those whose number is smaller."),
        everything: bool = Query(False, alias="all", description="Also those that have ended."),
        by: Identity = Depends(gate.identity),
    ) -> SharesAbout:
        found = await run_sync(lambda: shares.listed(by, limit=limit + 1, before=before, all_=everything))
        more, found = len(found) > limit, found[:limit]
        now_ns = shares.now_ns()
        return SharesAbout(shares=[_about(share, now_ns) for share in found], next=found[-1].id if more else None)

    @routes.delete("/shares/{number}", status_code=204, summary="End a share",
                   responses=failing_behind_the_gate(NoContent))  # fmt: skip
    async def end_share(number: int = Path(ge=1, le=_LARGEST), by: Identity = Depends(gate.identity)) -> None:
        """Nobody gets it any more; its file is removed."""
        await run_sync(shares.end, by, number)

    return routes


def _about(share: Share, now_ns: int) -> ShareAbout:
    return ShareAbout(
        number=share.id, name=share.name, type=share.type, size=share.size, password=share.password is not None,
        downloads=share.downloads, taken=share.taken, state="ended" if share.has_ended(now_ns) else "open",
        stored=share.file is not None, created=_when(share.created_ns),
        expires=None if share.expires_ns is None else _when(share.expires_ns),
    )  # fmt: skip


def _when(at_ns: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at_ns // 1_000_000_000, datetime.UTC)
