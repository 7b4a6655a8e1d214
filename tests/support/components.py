"""What a test needs of the machine. One rule: a missing component skips the test and says why in the summary; under
``CI=true`` it fails the test, so that a gap cannot hide.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """End the test: something that it needs is not here."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (CI=true: that is a failure)", pytrace=False)
    pytest.skip(reason)


def need(program: str) -> str:
    """The full path of a program, or the end of the test."""
    found = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        missing(f"{program} is not installed (scripts/debian-packages.txt)")
    return found


def need_module(name: str) -> None:
    """A Python module that only some installations have, or the end of the test."""
    try:
        __import__(name)
    except ImportError:
        missing(f"the Python module {name} is not installed")
