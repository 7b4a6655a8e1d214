"""An account and programs of each kind."""

from __future__ import annotations

import pytest

from holdfast.accounts.clients import CREDENTIALS, OURS
from holdfast.accounts.directory import Identity
from holdfast.catalog.database import Database
from tests.accounts.making import House
from tests.accounts.programs import (
    Program,
    registered,
)


@pytest.fixture
def house(database: Database) -> House:
    return House(database)


@pytest.fixture
def ann(house: House) -> Identity:
    return house.user("ann")


@pytest.fixture
def app(house: House, ann: Identity) -> Program:
    """With a secret."""
    return registered(house, ann)


@pytest.fixture
def phone(house: House, ann: Identity) -> Program:
    """Without one."""
    return registered(house, ann, public=True)


@pytest.fixture
def robot(house: House, ann: Identity) -> Program:
    return registered(house, ann, allowed=[CREDENTIALS], redirect_uris=[])


@pytest.fixture
def television(house: House) -> Program:
    return Program(house, OURS, None)
