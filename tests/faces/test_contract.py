"""``/openapi.json`` is a contract: what it says is answered, whatever is asked; and ``/docs`` shows all of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import Running, running

FEW, MANY = 5, 60
SETTINGS = """
[generation]
database = 'none'
[checks.not_a_server_error]
expected-statuses = ['2xx', '3xx', '4xx', '507']  # a quota of nothing is full
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with running(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_every_answer_is_one_that_the_contract_names(server: Running, tmp_path: Path, examples: int):
    with server.client() as admin:
        scopes = [
            "admin",
            "files:read",
            "files:write",
            "shares:read",
            "shares:write",
            "vaults:read",
            "vaults:write",
            "blobs:read",
            "blobs:write",
        ]
        made = admin.post("/accounts/tokens", json={"name": f"contract {examples}", "scopes": scopes})
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.url}/openapi.json",
            "--header", f"Authorization: Bearer {made.json()['token']}", "--phases", "examples,coverage,fuzzing",
            "--max-examples", str(examples), "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
            "--exclude-path-regex", "^/accounts/tokens", "--seed", "1", "--no-color", "--request-timeout", "20",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert not [line for line in server.log if '"fault"' in line]


def test_the_page_shows_every_operation_and_needs_no_network(server: Running):
    with server.anonymous() as anybody:
        document, page = anybody.get("/openapi.json").json(), anybody.get("/docs")
    assert page.status_code == 200 and "script" not in page.text
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in page.text
    assert [a for a in re.findall(r'(?:src|href)="([^"]+)"', page.text) if "//" in a] == []


def test_what_is_open_to_all_says_nothing_and_the_numbers_need_an_administrator(server: Running):
    with server.anonymous() as anybody, server.user("reader") as reader, server.client() as admin:
        assert anybody.get("/healthz").text == "ok\n"
        assert anybody.get("/readyz").json() == {"ready": True}
        assert anybody.get("/metrics").status_code == 401
        assert reader.get("/metrics").status_code == 403
        assert "holdfast_requests_total" in admin.get("/metrics").text
