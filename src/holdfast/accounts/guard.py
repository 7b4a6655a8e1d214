"""Guessing passwords is slow: failed log-ins are counted for each account from each address, and for each address.

After MOST failures no further one is heard, right or wrong, until a pause has passed that doubles with every failure
from then on. The owner of an account can log in from his own address while somebody else guesses from another one.
The counts stand in the catalog, so that every node knows them and a restart forgets none.
"""

from __future__ import annotations

from holdfast.catalog import people
from holdfast.catalog.database import Connection
from holdfast.errors import TooManyAttempts

MOST = 10  # for one account from one address
MOST_FROM_ADDRESS = 50  # for all accounts from one address
PAUSE_S = 30
LONGEST_PAUSE_S = 900
FORGET_S = 3600  # after the last failure
_SECOND = 1_000_000_000


def demand_calm(connection: Connection, username: str, address: str, now_ns: int) -> None:
    """TooManyAttempts while a pause lasts."""
    wait = 0
    found = people.failures(connection, _subjects(username, address))
    for subject, most in zip(_subjects(username, address), (MOST, MOST_FROM_ADDRESS), strict=True):
        count, last_ns = found.get(subject, (0, 0))
        if count >= most and now_ns - last_ns < FORGET_S * _SECOND:
            pause = min(LONGEST_PAUSE_S, PAUSE_S << min(count - most, 8))
            wait = max(wait, -((now_ns - last_ns - pause * _SECOND) // _SECOND))
    if wait > 0:
        raise TooManyAttempts(
            "Too many log-ins failed.", f"Try again in {wait} seconds.", retry_after=min(wait, LONGEST_PAUSE_S)
        )


def hold(connection: Connection, username: str, address: str, now_ns: int) -> None:
    """Let no other log-in of this account or address be judged until the transaction ends."""
    people.hold_failures(connection, _subjects(username, address), now_ns)


def count_failure(connection: Connection, username: str, address: str, now_ns: int) -> None:
    for subject in _subjects(username, address):
        people.add_failure(connection, subject, now_ns, now_ns - FORGET_S * _SECOND)


def forget(connection: Connection, username: str, address: str) -> None:
    """After a log-in that succeeded: the account's own count begins anew, the address's stays."""
    people.forget_failures(connection, _subjects(username, address)[:1])


def _subjects(username: str, address: str) -> tuple[str, str]:
    return f"account {address} {username}", f"address {address}"
