"""The desk: where blobs become what their keys mean, many at a time.

One thread notes in the catalog what has come. It takes everything that waits and writes it in one transaction, so that
a hundred small blobs share one flush of the disk. What is promised: orders are carried out in the order they came; one
whose future has a result is noted durably; one whose future has an error is not.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from holdfast.catalog.database import Connection, Database
from holdfast.catalog.holdings import hold_accounts
from holdfast.errors import HoldfastError, StorageUnavailable

_MOST_AT_ONCE = 512


def _begun() -> Future[None]:
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()
    return future


@dataclass(eq=False)
class Order:
    """``note`` is called in the transaction; where it cannot be done it gives the error, and has changed nothing.
    ``account``: whose usage it changes.
    """

    account: int
    note: Callable[[Connection], HoldfastError | None]
    error: HoldfastError | None = None
    done: Future[None] = field(default_factory=_begun)


class Desk:
    """See the module. Safe to share between threads; ``close`` finishes what has come, and ends the thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._door, self._closed = threading.Lock(), False  # no order comes in behind the end
        self._thread = threading.Thread(target=self._run, name="desk")
        self._thread.start()

    def close(self) -> None:
        with self._door:
            self._closed = True
            self._orders.put(None)
        self._thread.join()

    def commit(self, order: Order) -> Future[None]:
        """Have an order carried out; its future."""
        with self._door:
            if self._closed:
                order.done.set_exception(StorageUnavailable("The server is stopping.", "Try again in a while."))
            else:
                self._orders.put(order)
        return order.done

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._note(batch)
            except Exception as e:  # noqa: BLE001 - whoever waits gets it
                self._alone(batch, e)

    def _next(self) -> list[Order]:
        """The orders that wait, at least one; none at the end."""
        batch: list[Order] = []
        order = self._orders.get()
        while order is not None:
            batch.append(order)
            if self._orders.empty() or len(batch) >= _MOST_AT_ONCE:
                return batch
            order = self._orders.get()
        if batch:
            self._orders.put(None)  # the end comes after these
        return batch

    def _note(self, batch: list[Order]) -> None:
        with self._database.writing() as c:
            hold_accounts(c, {order.account for order in batch})
            for order in batch:
                order.error = order.note(c)
        for order in batch:
            if order.error is None:
                order.done.set_result(None)
            else:
                order.done.set_exception(order.error)

    def _alone(self, batch: list[Order], error: Exception) -> None:
        """Together it failed: each by itself, so that nobody suffers from what somebody else has sent."""
        if len(batch) == 1:
            batch[0].done.set_exception(error)
            return
        for order in batch:
            try:
                self._note([order])
            except Exception as e:  # noqa: BLE001 - whoever waits gets it
                order.done.set_exception(e)
