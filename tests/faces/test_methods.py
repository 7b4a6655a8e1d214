"""A method that a resource does not have."""

from __future__ import annotations

from tests.support.server import Running


def test_a_method_that_is_not_there_is_told_which_are(server: Running) -> None:
    with server.anonymous() as nobody:
        for path, methods in (
            ("/accounts/users", {"GET", "POST"}),
            ("/accounts/users/ann", {"GET", "PATCH", "DELETE"}),
            ("/oauth2/token", {"POST"}),
        ):
            answer = nobody.put(path)
            assert answer.status_code == 405 and set(answer.headers["allow"].split(", ")) == methods
