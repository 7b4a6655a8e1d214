"""For every test: ``needs_root`` is kept, ``need`` is at hand (tests/support/components.py has the rule), and nothing
of whoever runs the tests is met: no settings, no default repository, no password, no cache.
"""

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
def a_home_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in [n for n in os.environ if n.startswith("HOLDFAST_")]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.getbasetemp() / "home" / os.urandom(8).hex()  # made by whoever uses it
    for variable, folder in {"DATA": ".local/share", "CONFIG": ".config", "CACHE": ".cache"}.items():
        monkeypatch.setenv(f"XDG_{variable}_HOME", str(home / folder))
