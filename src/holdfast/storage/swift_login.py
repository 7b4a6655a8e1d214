"""Who one is at OpenStack Swift: from the usual variables to the account's address and a token.

Keystone v3 (a user's password, or an application credential), the older log-in of version 1, or a token that is there
already. ``login`` lists the variables. Passwords and tokens stand in no error.
"""

from __future__ import annotations

import contextlib
import re
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from keystoneauth1 import exceptions as refusals
from keystoneauth1 import token_endpoint
from keystoneauth1.identity import v3
from keystoneauth1.session import Session
from swiftclient.authv1 import PasswordPlugin

from holdfast.errors import StorageDenied, StorageError, StorageUnavailable, UsageError
from holdfast.storage.select import Access

CONNECT_SECONDS = 20.0
NONSENSE = (ValueError, TypeError, KeyError, AttributeError, EOFError, zlib.error)  # what a strange answer ends in


class Login:
    """Where the account is and the token to show there, asked for when they are first needed."""

    def __init__(self, plugin: Any, at: str, speaks: str, access: Access) -> None:
        """``at``: the address where one logs in, of a server that ``speaks`` this."""
        self._plugin, self._speaks, self._shown = plugin, speaks, shown(at)
        self._override = _address(access, "OS_STORAGE_URL")
        self._region = access.get("OS_REGION_NAME") or None
        self._interface = access.get("OS_INTERFACE", "OS_ENDPOINT_TYPE") or "public"
        http = requests.Session()
        http.trust_env = False
        self._session = Session(session=http, verify=ca_file(access) or True, timeout=CONNECT_SECONDS, redirect=False)
        self._lock = threading.Lock()
        self._url = ""

    def account(self) -> tuple[str, str]:
        """The URL of the account, and a token."""
        with self._lock, self._errors():
            token = self._plugin.get_token(self._session)
            if not self._url:
                self._url = self._override or self._from_catalog()
        if not token:
            raise self._nonsense()
        return self._url, token

    def renew(self, refused: str) -> bool:
        """The server has refused that token: whether another one can be had."""
        with self._lock, self._errors():
            if self._plugin.get_token(self._session) != refused:  # another thread was here
                return True
            return bool(self._plugin.invalidate())

    def denied(self) -> StorageDenied:
        return StorageDenied(
            f"Swift does not take the token of {self._shown}.",
            "A token given in OS_AUTH_TOKEN ends; otherwise check the user, his role and the project.",
        )

    def close(self) -> None:
        self._session.session.close()

    def _from_catalog(self) -> str:
        wanted = {"service_type": "object-store", "interface": self._interface, "region_name": self._region}
        try:
            found = self._plugin.get_endpoint(self._session, skip_discovery=True, **wanted)
        except refusals.EmptyCatalog:
            raise
        except refusals.EndpointNotFound:
            found = None
        if not found:
            raise StorageError(
                f"The catalog of {self._shown} has no {self._interface} object store in "
                f"{'the region ' + self._region if self._region else 'any region'}.",
                "Check OS_REGION_NAME, OS_INTERFACE and the project (OS_PROJECT_NAME).",
            )
        return str(found).rstrip("/")

    def _nonsense(self) -> StorageError:
        return StorageError(
            f"{self._shown} does not speak {self._speaks}.", "Check OS_AUTH_URL (or ST_AUTH): something else is there."
        )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except refusals.HttpError as e:
            raise self._meaning(e.http_status, e.response) from None
        except refusals.SSLError as e:
            raise unsafe(self._shown, e) from None
        except (refusals.ConnectFailure, refusals.ConnectTimeout):
            raise StorageUnavailable(
                f"{self._shown} cannot be reached.", "Is it running, and OS_AUTH_URL right?"
            ) from None
        except refusals.EmptyCatalog:
            raise StorageError(
                f"The token of {self._shown} is for no project.", "Set OS_PROJECT_NAME and OS_PROJECT_DOMAIN_NAME."
            ) from None
        except (refusals.ClientException, *NONSENSE):
            raise self._nonsense() from None

    def _meaning(self, status: int, answer: Any) -> StorageError:
        if status in (401, 403):
            return StorageDenied(
                f"{self._shown} refuses the log-in.",
                "Check the user, the password, their domain (OS_USER_DOMAIN_NAME) and the project (OS_PROJECT_NAME).",
            )
        if status == 400 and "json" in answer.headers.get("content-type", ""):
            return StorageError(
                f"{self._shown} does not understand the log-in.", "Check domains, ids and names in OS_…."
            )
        if may_pass(status):
            return StorageUnavailable(f"{self._shown} answers {status}.")
        return self._nonsense()


def login(access: Access) -> Login:
    """Who we are, by the first of these that is there:

    - OS_STORAGE_URL and OS_AUTH_TOKEN
    - OS_AUTH_URL and OS_APPLICATION_CREDENTIAL_SECRET with …_ID, or with …_NAME and a user
    - OS_AUTH_URL and OS_PASSWORD, with OS_USERNAME or OS_USER_ID, OS_USER_DOMAIN_NAME or …_ID ("default" unless told),
      OS_PROJECT_NAME (or OS_TENANT_NAME) or …_ID, OS_PROJECT_DOMAIN_NAME or …_ID (the user's unless told)
    - ST_AUTH, ST_USER and ST_KEY: the older way, version 1
    """
    get = access.get
    if get("OS_STORAGE_URL") and get("OS_AUTH_TOKEN"):
        at = _address(access, "OS_STORAGE_URL")
        return Login(token_endpoint.Token(at, get("OS_AUTH_TOKEN")), at, "Swift", access)
    if get("OS_AUTH_URL") and get("OS_APPLICATION_CREDENTIAL_SECRET", "OS_PASSWORD"):
        at = _address(access, "OS_AUTH_URL")
        if re.search(r"/v[12](\.\d+)?$", at):
            raise UsageError(
                f"OS_AUTH_URL ({shown(at)}) is of a version of Keystone that is gone.",
                "Give its address with /v3; for the older way of Swift set ST_AUTH, ST_USER and ST_KEY.",
            )
        at = at if at.endswith("/v3") else at + "/v3"
        return Login(_keystone(at, access), at, "Keystone v3", access)
    if get("ST_AUTH") and get("ST_USER") and get("ST_KEY"):
        at = _address(access, "ST_AUTH")
        return Login(PasswordPlugin(at, get("ST_USER"), get("ST_KEY")), at, "Swift's log-in of version 1", access)
    raise UsageError(
        "Nothing says how to log in to Swift.",
        "Set OS_AUTH_URL, OS_USERNAME, OS_PASSWORD, OS_USER_DOMAIN_NAME, OS_PROJECT_NAME and OS_PROJECT_DOMAIN_NAME, "
        "or an application credential, or OS_STORAGE_URL and OS_AUTH_TOKEN, or ST_AUTH, ST_USER and ST_KEY.",
    )


def _keystone(at: str, access: Access) -> Any:
    def of(*names: str) -> str | None:
        return access.get(*names) or None

    user: dict[str, Any] = {"user_id": of("OS_USER_ID"), "username": of("OS_USERNAME")}
    domain: dict[str, Any] = {"id": of("OS_USER_DOMAIN_ID"), "name": of("OS_USER_DOMAIN_NAME")}
    if not any(domain.values()):
        domain["id"] = "default"
    user |= {f"user_domain_{key}": value for key, value in domain.items()}
    secret = of("OS_APPLICATION_CREDENTIAL_SECRET")
    credential: dict[str, Any] = {"application_credential_id": of("OS_APPLICATION_CREDENTIAL_ID")}
    credential["application_credential_name"] = of("OS_APPLICATION_CREDENTIAL_NAME")
    if not (secret and credential["application_credential_id"]) and not (user["user_id"] or user["username"]):
        raise UsageError("Nothing says which user logs in to Swift.", "Set OS_USERNAME and OS_USER_DOMAIN_NAME.")
    if secret:
        if not any(credential.values()):
            raise UsageError("OS_APPLICATION_CREDENTIAL_ID is missing.", "Set it, or OS_APPLICATION_CREDENTIAL_NAME.")
        return v3.ApplicationCredential(at, application_credential_secret=secret, **credential, **user)
    project_domain: dict[str, Any] = {"id": of("OS_PROJECT_DOMAIN_ID"), "name": of("OS_PROJECT_DOMAIN_NAME")}
    if not any(project_domain.values()):
        project_domain = domain
    return v3.Password(
        at,
        password=access.get("OS_PASSWORD"),
        project_id=of("OS_PROJECT_ID", "OS_TENANT_ID"),
        project_name=of("OS_PROJECT_NAME", "OS_TENANT_NAME"),
        **{f"project_domain_{key}": value for key, value in project_domain.items()},
        **user,
    )


def _address(access: Access, variable: str) -> str:
    """The URL in a variable, empty where there is none."""
    url = access.get(variable).strip().rstrip("/")
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        fits = False
    if url and not fits:
        raise UsageError(f"{variable} is not an address.", "Write https://HOST:PORT/PATH, without user and password.")
    return url


def ca_file(access: Access) -> str:
    path = access.get("HOLDFAST_CA_FILE", "OS_CACERT", "SSL_CERT_FILE")
    if path and not Path(path).exists():
        raise UsageError(f"There is no file {path} with certificate authorities.", "Check HOLDFAST_CA_FILE.")
    return path


def may_pass(status: int) -> bool:
    return status in (408, 425, 429, 498, 499) or (status >= 500 and status not in (501, 505, 507))


def shown(url: str) -> str:
    """An address without anything that could be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def unsafe(host: str, error: Exception) -> StorageError:
    reason = re.search(r"certificate verify failed: ([^(\"]+)", str(error), re.IGNORECASE)
    if reason:
        return StorageDenied(
            f"The certificate of {host} cannot be trusted: {reason[1].strip(' .')}.",
            "Name the file of its certificate authority in HOLDFAST_CA_FILE, or correct the address.",
        )
    if re.search("EOF|reset|timed out", str(error)):
        return StorageUnavailable(f"{host} broke off.")
    return StorageError(f"No encryption can be agreed on with {host}.", "Is it https that is spoken there?")
