"""Guessing passwords is slow: failed log-ins are counted for each account from each address, and for each address. An
IPv6 address counts as its /64: whoever has one of those has them all.

After MOST failures no further one is heard, right or wrong, until a pause has passed that doubles with every failure
from then on. The owner of an account can log in from his own address while somebody else guesses from another one.
The counts stand in the catalog, so that every node knows them and a restart forgets none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from holdfast.catalog import people
from holdfast.catalog.database import Connection
from holdfast.errors import TooManyAttempts

MOST = 10  # for one account from one address
MOST_FROM_ADDRESS = 50  # for all accounts from one address
PAUSE_S = 30
LONGEST_PAUSE_S = 900
FORGET_S = 3600  # after the last failure
_SECOND = 1_000_000_000
_IPV6_NETWORK = 64


def demand_calm(connection: Connection, username: str, address: str, now_ns: int) -> bool:
    """TooManyAttempts while a pause lasts. Else whether nothing failed of late, for that account from that address."""
    subjects = _subjects(username, address)
    limits = dict(zip(subjects, (MOST, MOST_FROM_ADDRESS), strict=True))
    found = demand_calm_of(connection, limits, now_ns, "Too many log-ins failed.")
    return found.get(subjects[0], 0) == 0


def demand_calm_of(connection: Connection, limits: Mapping[str, int], now_ns: int, sentence: str) -> dict[str, int]:
    """The same for anything that is guessed at. ``limits``: how many may fail of each subject before there is a pause;
    ``sentence``: what is said then. How many failures each subject has that has any of late.
    """
    wait, found = 0, dict[str, int]()
    for subject, (count, last_ns) in people.failures(connection, list(limits)).items():
        if now_ns - last_ns >= FORGET_S * _SECOND:
            continue
        found[subject] = count
        if count >= limits[subject]:
            pause = min(LONGEST_PAUSE_S, PAUSE_S << min(count - limits[subject], 8))
            wait = max(wait, -((now_ns - last_ns - pause * _SECOND) // _SECOND))
    if wait > 0:
        raise TooManyAttempts(sentence, f"Try again in {wait} seconds.", retry_after=min(wait, LONGEST_PAUSE_S))
    return found


def hold(connection: Connection, username: str, address: str, now_ns: int) -> None:
    """Let no other log-in of this account or address be judged until the transaction ends."""
    people.hold_failures(connection, _subjects(username, address), now_ns)


def count_failure(connection: Connection, username: str, address: str, now_ns: int) -> None:
    count_failure_of(connection, _subjects(username, address), now_ns)


def count_failure_of(connection: Connection, subjects: Iterable[str], now_ns: int) -> None:
    for subject in subjects:
        people.add_failure(connection, subject, now_ns, now_ns - FORGET_S * _SECOND)


def forget(connection: Connection, username: str, address: str) -> None:
    """After a log-in that succeeded: the account's own count begins anew, the address's stays."""
    people.forget_failures(connection, _subjects(username, address)[:1])


def source_of(address: str) -> str:
    """What counts as one address: of IPv6 the network, because a client may choose among 2^64 addresses; IPv4 in
    IPv6's clothes is IPv4. What is no address counts as it stands.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found), _IPV6_NETWORK), strict=False))


def _subjects(username: str, address: str) -> tuple[str, str]:
    source = source_of(address)
    return f"account {source} {username}", f"address {source}"
