"""``/vaults``: vaults as owners and administrators see them. What lies in one is at ``/vault`` (``faces.vault``)."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from holdfast.accounts.directory import Identity
from holdfast.errors import Contradiction, NoContent, QuotaFull, TooLarge
from holdfast.faces.contract import failing_behind_the_gate
from holdfast.faces.forms import ShortBody
from holdfast.faces.gate import Gate
from holdfast.vaults.rights import Seen
from holdfast.vaults.vaults import Vaults

Amount = Annotated[int, Field(ge=0, le=(1 << 53) - 1)]  # what every reader of JSON takes for the same number
_TAGS: list[Any] = ["vaults"]
_ONE = "/vaults/{owner}/{name}"


class _Body(BaseModel):
    """What is sent: exactly these fields, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NewVault(_Body):
    """``quota_bytes``: null for no limit but the account's."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    quota_bytes: Amount | None = None
    append_only: bool = False


class VaultChange(_Body):
    """What is left out stays."""

    quota_bytes: Amount | None = None
    append_only: bool = False


class NewGrant(_Body):
    """``read``: get and list, and locks. ``append``: also put what is new. ``full``: also delete."""

    allowed: Literal["read", "append", "full"]


class VaultAbout(BaseModel):
    """``url``: where it is for other programs. ``right``: what one may do with it: owner, full, append, read; empty for
    an administrator to whom nothing was granted.
    """

    owner: str
    name: str
    url: str
    right: str
    append_only: bool
    quota_bytes: int | None
    bytes: int
    objects: int
    created: datetime.datetime


class VaultsAbout(BaseModel):
    vaults: list[VaultAbout]


class GrantAbout(BaseModel):
    username: str
    allowed: str
    created: datetime.datetime


class GrantsAbout(BaseModel):
    grants: list[GrantAbout]


def router(vaults: Vaults, gate: Gate) -> APIRouter:
    """The routes of ``/vaults``."""
    routes = APIRouter(route_class=ShortBody)
    _all(routes, vaults, gate)
    _one(routes, vaults, gate)
    _grants(routes, vaults, gate)
    return routes


def _all(routes: APIRouter, vaults: Vaults, gate: Gate) -> None:
    @routes.get("/vaults", tags=_TAGS, summary="One's own vaults, and those that were granted one",
                responses=failing_behind_the_gate())  # fmt: skip
    async def list_vaults(
        everybody: bool = Query(False, alias="all", description="For administrators: everybody's."),
        by: Identity = Depends(gate.identity),
    ) -> VaultsAbout:
        found = await run_sync(lambda: vaults.listed(by, everybody=everybody))
        return VaultsAbout(vaults=[_about(seen) for seen in found])

    @routes.post("/vaults", status_code=201, tags=_TAGS, summary="Make a vault",
                 responses=failing_behind_the_gate(Contradiction, TooLarge, QuotaFull))  # fmt: skip
    async def make_vault(body: NewVault, response: Response, by: Identity = Depends(gate.identity)) -> VaultAbout:
        made, is_new = await run_sync(
            lambda: vaults.create(by, body.name, quota_bytes=body.quota_bytes, append_only=body.append_only)
        )
        if not is_new:
            raise Contradiction(f"You have a vault {body.name} already.", "Choose another name, or change it.")
        response.headers["Location"] = f"/vaults/{made.vault.owner}/{made.vault.name}"
        return _about(made)


def _one(routes: APIRouter, vaults: Vaults, gate: Gate) -> None:
    @routes.get(_ONE, tags=_TAGS, summary="One vault", responses=failing_behind_the_gate(NoContent))
    async def one_vault(owner: str, name: str, by: Identity = Depends(gate.identity)) -> VaultAbout:
        return _about(await run_sync(vaults.about, by, owner, name))

    @routes.patch(_ONE, tags=_TAGS, summary="Change a vault",
                  responses=failing_behind_the_gate(NoContent, TooLarge, QuotaFull))  # fmt: skip
    async def change_vault(
        owner: str, name: str, body: VaultChange, by: Identity = Depends(gate.identity)
    ) -> VaultAbout:
        """Only a person turns ``append_only`` off, or changes ``quota_bytes``: with the password or a session."""
        changes = body.model_dump(exclude_unset=True)
        return _about(await run_sync(vaults.change, by, owner, name, changes))

    @routes.delete(_ONE, status_code=204, tags=_TAGS, summary="Delete a vault and all that is in it",
                   responses=failing_behind_the_gate(NoContent))  # fmt: skip
    async def delete_vault(
        owner: str,
        name: str,
        confirm: str = Query("", description="The vault's name once more."),
        by: Identity = Depends(gate.identity),
    ) -> None:
        """Only a person does that: with the password or a session."""
        await run_sync(vaults.delete, by, owner, name, confirm)


def _grants(routes: APIRouter, vaults: Vaults, gate: Gate) -> None:
    @routes.get(f"{_ONE}/grants", tags=_TAGS, summary="What others may do with a vault",
                responses=failing_behind_the_gate(NoContent))  # fmt: skip
    async def list_grants(owner: str, name: str, by: Identity = Depends(gate.identity)) -> GrantsAbout:
        found = await run_sync(vaults.grants, by, owner, name)
        return GrantsAbout(
            grants=[GrantAbout(username=g.username, allowed=g.allowed, created=_when(g.created_ns)) for g in found]
        )

    @routes.put(f"{_ONE}/grants/{{username}}", status_code=204, tags=_TAGS, summary="Let another account use a vault",
                responses=failing_behind_the_gate(NoContent, Contradiction, TooLarge))  # fmt: skip
    async def put_grant(
        owner: str, name: str, username: str, body: NewGrant, by: Identity = Depends(gate.identity)
    ) -> None:
        """Only a person does that: with the password or a session."""
        await run_sync(vaults.grant, by, owner, name, username, body.allowed)

    @routes.delete(f"{_ONE}/grants/{{username}}", status_code=204, tags=_TAGS, summary="End what another account may",
                   responses=failing_behind_the_gate(NoContent))  # fmt: skip
    async def end_grant(owner: str, name: str, username: str, by: Identity = Depends(gate.identity)) -> None:
        """Only a person does that: with the password or a session."""
        await run_sync(vaults.end_grant, by, owner, name, username)


def _about(seen: Seen) -> VaultAbout:
    vault = seen.vault
    return VaultAbout(
        owner=vault.owner, name=vault.name, url=f"/vault/{vault.owner}/{vault.name}/", right=seen.right,
        append_only=vault.append_only, quota_bytes=vault.quota_bytes, bytes=vault.bytes, objects=vault.objects,
        created=_when(vault.created_ns),
    )  # fmt: skip


def _when(at_ns: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at_ns // 1_000_000_000, datetime.UTC)
