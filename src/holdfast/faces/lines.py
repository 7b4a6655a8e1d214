"""The connection that a request came on, as far as a face may know of it: what its client has not taken yet."""

from __future__ import annotations

from typing import Protocol, cast

from starlette.types import Scope

_LINE = "holdfast.line"


class Line(Protocol):
    """A connection."""

    def untaken(self) -> int:
        """Bytes of answers that the client's machine has not acknowledged; -1 when the connection is gone."""

    def cut_off(self) -> None:
        """Close it at once, whatever is still to be sent."""


class _NoLine:
    """Where no listener has said anything: what was sent is gone."""

    def untaken(self) -> int:
        return 0

    def cut_off(self) -> None:
        """Nobody is there."""


def attach(scope: Scope, line: Line) -> None:
    """Have a request carry its connection along."""
    scope[_LINE] = line


def line_of(scope: Scope) -> Line:
    """The connection that the listener has attached."""
    return cast(Line, scope.get(_LINE) or _NoLine())
