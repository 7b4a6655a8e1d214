"""For every test: ``needs_root`` is kept, and ``need`` is at hand (see tests/support/components.py for the rule)."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.support import components


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("needs_root"):
            item.add_marker(pytest.mark.skip(reason="needs root: mounts, owners or device nodes"))


@pytest.fixture(scope="session")
def need() -> Callable[[str], str]:
    """``need("strace")``: the program's path; without it the test is skipped, or under CI=true fails."""
    return components.need


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test meets the settings, the default repository or the password of whoever runs it."""
    for name in [n for n in os.environ if n.startswith("HOLDFAST_")]:
        monkeypatch.delenv(name)
