"""S3's addresses and credentials, and a client made of them.

==================================  ===========================================================================
``s3://BUCKET/PREFIX``              Amazon S3, or the server of AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL
``s3:https://HOST[:PORT]/BUCKET…``  any server (``http:`` too), as restic writes it
``s3:HOST[:PORT]/BUCKET/PREFIX``    the same, with https
``s3://HOST:PORT/BUCKET/PREFIX``    the same, with https: no bucket has a colon in its name
==================================  ===========================================================================

A server of one's own is asked by path (``https://HOST/BUCKET/…``) unless HOLDFAST_S3_STYLE=virtual
(``https://BUCKET.HOST/…``), Amazon by virtual hosts. Credentials: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
AWS_SESSION_TOKEN; or a profile (AWS_PROFILE) of ``~/.aws/credentials`` and ``~/.aws/config`` with all that may stand
there: keys, roles, SSO, processes; and on Amazon the roles of the machine.

Whatever botocore would read of the environment it is given from the variables of ``Access``. It tries nothing again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.request import proxy_bypass

import botocore.configprovider
import botocore.credentials
import botocore.hooks
import botocore.loaders
import botocore.session
import botocore.utils
from botocore.config import Config

from holdfast.errors import UsageError
from holdfast.storage.select import Access

_HOST = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_AMAZON = re.compile(r"s3(?:[.-](?:dualstack\.)?([a-z]{2}(?:-[a-z]+)+-[0-9]+))?\.amazonaws\.com(?:\.cn)?")
CAME_AS = "CameAs"  # in an answer: the status that the server gave it
_SPELLING = "It is written s3://BUCKET/PREFIX or s3:https://HOST/BUCKET/PREFIX."
_CONNECT_S, _SILENCE_S = 15, 120
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_CA_FILES = ("HOLDFAST_CA_FILE", "AWS_CA_BUNDLE", "SSL_CERT_FILE")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")


@dataclass(frozen=True)
class S3Address:
    """Where the objects are. ``endpoint``: the server's URL, empty for Amazon S3. ``prefix``: empty, or ends in ``/``.
    ``region``: as far as the address tells. ``style``: how the bucket is named in a request, as botocore calls it.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    style: str = "auto"

    @property
    def server(self) -> str:
        """The server as a user may see it."""
        return self.endpoint or "Amazon S3"

    @property
    def place(self) -> str:
        lead = f"s3:{self.endpoint}/" if self.endpoint else "s3://"
        return f"{lead}{self.bucket}/{self.prefix}".rstrip("/")


def parse(address: str, access: Access) -> S3Address:
    """What an address means; UsageError with the spelling when it means nothing."""
    rest = address.removeprefix("s3:")
    scheme, _, tail = rest.partition("//")
    if scheme not in ("", "http:", "https:"):  # without a scheme, and the // is somewhere in the path
        scheme, tail = "https:", rest
    first, _, path = tail.partition("/")
    if "@" in first:
        raise UsageError(
            "An S3 address holds no user and no password.", "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    if not scheme and ":" not in first:
        bucket, prefix, (endpoint, region) = first, path, _of_variables(access)
    else:
        bucket, _, prefix = path.partition("/")
        endpoint, region = _server(scheme or "https:", first)
    ca_file = access.get(*_CA_FILES)
    if ca_file and not os.path.exists(ca_file):
        raise UsageError(f"The file of certificates {ca_file!r} is not there.", f"Check {' and '.join(_CA_FILES)}.")
    prefix = prefix.strip("/")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError("The address names no bucket of S3.", _SPELLING)
    if prefix and (not prefix.isprintable() or not {"", ".", ".."}.isdisjoint(prefix.split("/"))):
        raise UsageError("What follows the bucket in the address is not a plain path.", _SPELLING)
    return S3Address(bucket, f"{prefix}/" if prefix else "", endpoint, region, _style(endpoint, access))


def _of_variables(access: Access) -> tuple[str, str]:
    endpoint = access.get(*_ENDPOINTS)
    if not endpoint:
        return "", ""
    scheme, separator, host = endpoint.rstrip("/").partition("//")
    if not separator or scheme not in ("http:", "https:"):
        raise UsageError("AWS_ENDPOINT_URL is not the address of a server.", "It is written https://HOST[:PORT].")
    return _server(scheme, host)


def _server(scheme: str, host: str) -> tuple[str, str]:
    """The server's URL, empty when it is Amazon's own; and its region, if its name tells."""
    found = _HOST.fullmatch(host)
    if not found or int(found[2] or 1) not in range(1, 65536):
        raise UsageError("The address of the S3 server is no host with a port.", _SPELLING)
    amazon = _AMAZON.fullmatch(host)
    if amazon and scheme == "https:":
        return "", amazon[1] or "us-east-1"
    return f"{scheme}//{host}", ""


def _style(endpoint: str, access: Access) -> str:
    asked = access.get("HOLDFAST_S3_STYLE")
    if asked not in ("", "path", "virtual"):
        raise UsageError(f"HOLDFAST_S3_STYLE is {asked!r}.", "Set it to path or virtual.")
    return asked or ("path" if endpoint else "auto")


def connect(address: S3Address, access: Access) -> Any:
    """A client of botocore. Nothing is asked of the server yet, but where credentials come from may be asked."""
    events = botocore.hooks.HierarchicalEmitter()
    events.register_first("before-parse.s3.*", _note_status)  # before the session registers its own
    session = botocore.session.Session(event_hooks=events)
    session.register_component("data_loader", _descriptions())
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
    _take_variables(session, access)
    resolver = botocore.credentials.create_credential_resolver(session)
    _take_credentials(resolver, access.variables, on_amazon=not address.endpoint)
    session.register_component("credential_provider", resolver)
    region = address.region or access.get(*_REGIONS) or session.get_config_variable("region") or "us-east-1"
    ca_file = access.get(*_CA_FILES)
    settings = Config(
        signature_version="s3v4",
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=_CONNECT_S,
        read_timeout=_SILENCE_S,
        max_pool_connections=access.connections,
        tcp_keepalive=True,
        proxies=_proxies(address.endpoint, access),
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        ignore_configured_endpoint_urls=True,
        s3={"addressing_style": address.style, "us_east_1_regional_endpoint": "regional"},
    )
    return session.create_client(
        "s3", region_name=region, endpoint_url=address.endpoint or None, verify=ca_file or True, config=settings
    )


def _note_status(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Keep the status that came: botocore takes every answer that is no XML for a server's error that may pass."""
    customized_response_dict[CAME_AS] = response_dict["status_code"]


def _time(text: Any) -> datetime:
    """A time as a server writes it. botocore's own way takes most of the time that a listing takes."""
    if isinstance(text, str) and "T" in text and text.endswith("Z"):
        with contextlib.suppress(ValueError):
            return datetime.fromisoformat(text)
    when: datetime = botocore.utils.parse_timestamp(text)
    return when


@functools.cache
def _descriptions() -> Any:
    """botocore's descriptions of S3, read once: that takes as long as a hundred requests."""
    return botocore.loaders.create_loader()


def _take_variables(session: Any, access: Access) -> None:
    """Have the session read our variables where it would have read the environment, and files below our home."""
    variables = dict(access.variables)
    for variable, usual in (("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials")):
        given = variables.get(variable, "")
        if given.startswith("~/"):
            given = os.path.join(access.home, given[2:])
        variables[variable] = given or os.path.join(access.home, ".aws", usual)
    variables = {k: v for k, v in variables.items() if v}
    factory = botocore.configprovider.ConfigChainFactory(session=session, environ=variables)
    chains = {
        name: factory.create_config_chain(name, names, in_file, default, convert)
        for name, (in_file, names, default, convert) in (
            botocore.configprovider.BOTOCORE_DEFAUT_SESSION_VARIABLES.items()
        )
    }
    session.register_component("config_store", botocore.configprovider.ConfigValueStore(mapping=chains))


def _take_credentials(resolver: Any, variables: Mapping[str, str], *, on_amazon: bool) -> None:
    """Have our variables asked for keys, and the machine's own roles only on Amazon: nobody else knows them, and a
    machine that has none is slow to say so.
    """
    for method in ("env", "container-role", "ec2-credentials-file", "boto-config"):
        resolver.remove(method)
    resolver.insert_before("assume-role", botocore.credentials.EnvProvider(environ=dict(variables)))
    if on_amazon and variables.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
        resolver.insert_before("iam-role", botocore.credentials.ContainerProvider(environ=dict(variables)))
    else:
        resolver.remove("iam-role")
    if not on_amazon:
        resolver.remove("assume-role-with-web-identity")


def _proxies(endpoint: str, access: Access) -> dict[str, str]:
    """The proxies that the usual variables name for this server; none unless they do."""
    named = {kind: access.get(f"{kind}_proxy", f"{kind.upper()}_PROXY") for kind in ("http", "https", "no")}
    host = endpoint.partition("//")[2] or "s3.amazonaws.com"
    if proxy_bypass(host, {"no": named["no"]}):
        return {}
    return {kind: named[kind] for kind in ("http", "https") if named[kind]}
