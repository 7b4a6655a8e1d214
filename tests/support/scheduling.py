"""Runs several pieces of real work at once in an order that a test decides, call of the storage by call.

Each piece of work is an actor: a thread (and the threads it starts) whose storage is ``Stepped``. A call waits until
the scheduler lets its actor go on; only one call is done at a time. So a schedule, a list of whose turn it is for how
many calls, says exactly what happens, as long as an actor's own threads do not call at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from holdfast.errors import StorageUnavailable
from holdfast.storage.base import Storage
from tests.support.storages import Passing

T = TypeVar("T")
PATIENCE_S = 60.0


class Turn(NamedTuple):
    """What happens next: ``actor`` does so many calls, but stops before one that begins with ``until``, or is killed;
    before it ``act`` is done.
    """

    actor: str = ""
    calls: int = 1
    kill: bool = False
    act: Callable[[], object] | None = None
    until: str = ""


@dataclass
class Actor:
    """A piece of work and how it ended. ``calls``: how many turns it took, its beginning counted."""

    name: str
    work: Callable[[Storage], Any]
    result: Any = None
    error: BaseException | None = None
    calls: int = 0
    waiting: list[tuple[str, threading.Event]] = field(default_factory=list)  # the calls it wants to do
    done: bool = False
    killed: bool = False
    history: list[str] = field(default_factory=list)


class Stepped(Passing):
    """A storage whose every call waits for its actor's turn."""

    def __init__(self, inner: Storage, scheduler: Scheduler, actor: Actor) -> None:
        super().__init__(inner)
        self._scheduler, self._actor = scheduler, actor

    def _pass(self, kind: str, subject: str, size: int, act: Callable[[], T]) -> T:
        self._scheduler.wait_for_turn(self._actor, f"{kind} {subject}")
        try:
            if self._actor.killed:
                raise StorageUnavailable(f"{self._actor.name} was killed.")
            self._actor.history.append(f"{kind} {subject[:20]}")
            return act()
        finally:
            self._scheduler.end_turn()


class Scheduler:
    """``add`` the work, then ``run`` a schedule: when it is used up, all go on to their ends, one after the other."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._changed = threading.Condition()
        self._busy = False  # whether a call is being done
        self.actors: dict[str, Actor] = {}

    def add(self, name: str, work: Callable[[Storage], Any]) -> None:
        """``work`` gets the storage it must use."""
        self.actors[name] = Actor(name, work)

    def run(self, schedule: Iterable[Turn]) -> dict[str, Actor]:
        """Everybody's end."""
        threads = [threading.Thread(target=self._live, args=(a,), name=a.name) for a in self.actors.values()]
        for thread in threads:
            thread.start()
        try:
            for turn in schedule:
                self._take(turn)
        finally:
            for actor in self.actors.values():
                while self._step(actor):
                    pass
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), f"{thread.name} never ended"
        return self.actors

    def _take(self, turn: Turn) -> None:
        if turn.act:
            self._wait_until_all_wait()
            turn.act()
        if not turn.actor:
            return
        actor = self.actors[turn.actor]
        if turn.kill:
            self._wait_until_all_wait()
            actor.killed = True
        for _ in range(turn.calls):
            if not self._step(actor, turn.until):
                return

    def _step(self, actor: Actor, until: str = "") -> bool:
        """Let an actor do one call; whether it was not at its end, or at the call where it should stop."""
        self._wait_until_all_wait()
        with self._changed:
            if actor.done or (until and actor.waiting[0][0].startswith(until)):
                return False
            actor.calls += 1
            self._busy = True
            actor.waiting.pop(0)[1].set()
        return True

    def _wait_until_all_wait(self) -> None:
        """Until nobody does anything but wait for his turn."""
        with self._changed:
            still = self._changed.wait_for(
                lambda: not self._busy and all(a.done or a.waiting for a in self.actors.values()), PATIENCE_S
            )
        assert still, {a.name: (a.done, len(a.waiting), a.history[-3:]) for a in self.actors.values()}

    def wait_for_turn(self, actor: Actor, call: str) -> None:
        mine = threading.Event()
        with self._changed:
            actor.waiting.append((call, mine))
            self._changed.notify_all()
        assert mine.wait(PATIENCE_S), f"it is never the turn of {actor.name}"

    def end_turn(self) -> None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()

    def _live(self, actor: Actor) -> None:
        self.wait_for_turn(actor, "start")  # its first turn: until then it has not begun at all
        self.end_turn()
        try:
            actor.result = actor.work(Stepped(self._storage, self, actor))
        except BaseException as e:  # noqa: BLE001 - the test looks at it
            actor.error = e
        finally:
            with self._changed:
                actor.done = True
                self._changed.notify_all()
