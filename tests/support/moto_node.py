"""moto's S3 in one process, run by the Python of its own environment: ``moto_node.py PORT [CERTIFICATE KEY]``.

It prints the key of a user who may do everything, then checks every request's signature; and the secret of one who may
do nothing. ``POST /fill/BUCKET`` with a JSON list stores tiny objects under these keys without a request for each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

from moto import settings  # type: ignore[import-not-found]
from moto.core import DEFAULT_ACCOUNT_ID  # type: ignore[import-not-found]
from moto.iam.models import iam_backends  # type: ignore[import-not-found]
from moto.s3.models import s3_backends  # type: ignore[import-not-found]
from moto.server import DomainDispatcherApplication, create_backend_app  # type: ignore[import-not-found]
from werkzeug.serving import WSGIRequestHandler, run_simple

EVERYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
ANYBODY = {"Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}]}


class Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002
        pass


def make_users() -> dict[str, str]:
    iam = iam_backends[DEFAULT_ACCOUNT_ID]["aws"]
    told: dict[str, str] = {}
    for user in ("all", "none"):
        iam.create_user("us-east-1", user)
        key = iam.create_access_key(user)
        told |= {user: key.access_key_id, f"{user}_secret": key.secret_access_key}
    iam.put_user_policy("all", "everything", json.dumps(EVERYTHING))
    role = iam.create_role("role", json.dumps(ANYBODY), "/", None, "", {}, 3600)
    iam.put_role_policy("role", "everything", json.dumps(EVERYTHING))
    return {**told, "role": role.arn}


def with_filling(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if not environ["PATH_INFO"].startswith("/fill/"):
            return app(environ, start)
        s3, bucket = s3_backends[DEFAULT_ACCOUNT_ID]["aws"], environ["PATH_INFO"].removeprefix("/fill/")
        for key in json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))):
            s3.put_object(bucket, key, b"x")
        start("204 No Content", [])
        return []

    return answer


if __name__ == "__main__":
    print(json.dumps(make_users()), flush=True)
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0.0
    run_simple(
        "127.0.0.1",
        int(sys.argv[1]),
        with_filling(DomainDispatcherApplication(create_backend_app)),
        threaded=True,
        request_handler=Quiet,
        ssl_context=(sys.argv[2], sys.argv[3]) if len(sys.argv) > 2 else None,
    )
