"""What ``/openapi.json`` says about failures: an endpoint names the errors it can meet, and nothing is in the document
that is never answered.
"""

from __future__ import annotations

from typing import Any

from holdfast.errors import Forbidden, HoldfastError, NotLoggedIn, StorageUnavailable, TooManyAttempts, UsageError
from holdfast.faces.problems import problems_of

Responses = dict[int | str, dict[str, Any]]
_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


def failing(*errors: type[HoldfastError]) -> Responses:
    """The errors an endpoint can answer with, for its ``responses``."""
    return problems_of(*sorted({error.http_status for error in errors}))


def failing_behind_the_gate(*errors: type[HoldfastError]) -> Responses:
    """The same, with those of an endpoint that needs a log-in and reads something from the request."""
    return failing(UsageError, NotLoggedIn, Forbidden, TooManyAttempts, StorageUnavailable, *errors)


def complete(document: dict[str, Any]) -> None:
    """Take out what the framework says by itself of invalid requests: they are 400 here."""
    for path in document.get("paths", {}).values():
        for method in _METHODS:
            responses = path.get(method, {}).get("responses", {})
            if "HTTPValidationError" in str(responses.get("422", "")):
                del responses["422"]
    schemas = document.get("components", {}).get("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
