"""One server for all tests of a module; each test makes the accounts it needs, under names of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.support.server import Running, running

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def name() -> str:
    """A user name that nobody has."""
    return f"user{next(_numbers)}"
