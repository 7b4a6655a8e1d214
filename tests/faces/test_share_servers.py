"""Shares of several servers over one PostgreSQL, of an open server, and of one with other limits."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from tests.support import postgres
from tests.support.server import running
from tests.support.shares import API, CONTENT, demand_error, page_of, share


@pytest.mark.slow
def test_of_many_at_two_servers_exactly_one_wins(postgres_socket: str, tmp_path: Path):
    data = tmp_path / "data"
    with (
        postgres.fresh_database(postgres_socket) as url,
        running(data, "--database", url, HOLDFAST_SHARES__REMOVE_AFTER="1") as first,
        running(data, "--database", url, HOLDFAST_SHARES__REMOVE_AFTER="1") as second,
        first.client() as admin,
    ):
        urls = [share(admin, bytes(300_000)) for _ in range(5)]

        async def get(client: httpx2.AsyncClient, address: str) -> tuple[str, int]:
            return address, (await client.get(address)).status_code

        async def run() -> list[tuple[str, int]]:
            limits = httpx2.Limits(max_connections=100)
            async with httpx2.AsyncClient(timeout=120, limits=limits) as client:
                asked = [url.replace(first.url, there) for url in urls for there in (first.url, second.url)] * 10
                return await asyncio.gather(*(get(client, address) for address in asked))

        found = Counter((httpx2.URL(address).path, status) for address, status in asyncio.run(run()))
        for url in urls:
            assert (found[httpx2.URL(url).path, 200], found[httpx2.URL(url).path, 410]) == (1, 19)
        end = time.monotonic() + 60
        while [path for path in (data / "shares").rglob("*") if path.is_file()]:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert admin.get("/accounts/me").json()["usage"]["objects"] == 0


def test_on_an_open_server_anybody_shares_and_nobody_sees_what_others_do(tmp_path: Path):
    with running(tmp_path / "data", "--open") as server, server.anonymous() as anybody:
        url = share(anybody, downloads="2")
        assert anybody.get(url).content == CONTENT and anybody.get(page_of(url)).status_code == 200
        assert anybody.get("/shares").status_code == 401 and anybody.delete("/shares/1").status_code == 401


def test_the_limit_can_be_another_one(tmp_path: Path):
    with running(tmp_path / "data", HOLDFAST_SHARES__MOST_BYTES="100") as server, server.client() as admin:
        assert admin.get(share(admin, b"x" * 100)).content == b"x" * 100
        demand_error(admin.put(API, files={"file": ("a", b"x" * 101)}), 413, "Request Entity Too Large")
