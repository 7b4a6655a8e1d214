"""What is decided by is still so when it is done: who comes just after a change, and waited for it, is refused."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from holdfast.accounts.directory import TOKEN, Identity
from holdfast.catalog import vaults as rows
from holdfast.catalog.holdings import hold_accounts
from holdfast.errors import Forbidden, HoldfastError
from tests.vaults.making import Room


@contextmanager
def made_append_only_meanwhile(room: Room, owner: Identity) -> Iterator[None]:
    """Whoever reads before the end of the block sees that the vault is not append-only; it is when it ends."""
    with room.database.writing() as c:
        hold_accounts(c, [owner.account])
        rows.change_vault(c, room.vault(owner.username).id, append_only=True)
        yield


ACTS: dict[str, Callable[[Room, Identity], object]] = {
    "turn it off": lambda room, by: room.vaults.change(by, "ann", "v", {"append_only": False}),
    "delete the vault": lambda room, by: room.vaults.delete_own(by, "ann", "v"),
    "delete an object": lambda room, by: room.delete(by, b"something"),
}


@pytest.mark.parametrize("act", ACTS)
def test_what_comes_just_after_append_only_was_turned_on_undoes_nothing(room: Room, act: str):
    ann = room.user("ann")
    room.vaults.create(ann, "v")
    room.put(ann, b"something")
    token, raised = dataclasses.replace(ann, via=TOKEN), list[Exception]()

    def try_it() -> None:
        try:
            ACTS[act](room, token)
        except HoldfastError as e:
            raised.append(e)

    late = threading.Thread(target=try_it)
    with made_append_only_meanwhile(room, ann):
        late.start()
        late.join(0.7)  # it has read what there was, and waits
        assert late.is_alive()
    late.join(30)
    assert [type(e) for e in raised] == [Forbidden]
    assert room.vault("ann").append_only and room.counts("ann") == (9, 1)
