"""Shares behind a real nginx, as ``deploy/nginx.conf`` has it: nginx sends the files, once, and believes no client."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.faces.test_share_bodies import many
from tests.support.nginx import CONFIGURATION, free_port, nginx
from tests.support.server import Running, running
from tests.support.shares import API, CONTENT, demand_error, page_of, share, sharer

DIRECT = "/direct"
MIB = 1 << 20


@dataclass
class Front:
    """A server, and nginx before it. Clients speak to nginx but for ``direct``."""

    server: Running
    url: str
    folder: Path
    files: Path
    ann: httpx2.Client
    anybody: httpx2.Client


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    data, files, port = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("files"), free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "HOLDFAST_SERVER__URL": url, "HOLDFAST_SERVER__PROXIES": "127.0.0.1", "HOLDFAST_SHARES__ACCEL": "/shared-files",
        "HOLDFAST_SHARES__FOLDER": str(files), "HOLDFAST_SHARES__REMOVE_AFTER": "2",
    }  # fmt: skip
    backend = free_port()
    with running(data, "--port", str(backend), **settings) as server:
        server.url = f"http://127.0.0.1:{backend}"  # it names the one in its settings
        with nginx(port, backend, files) as folder, sharer(server, "ann") as direct:
            headers = {"Authorization": direct.headers["authorization"]}
            with (
                httpx2.Client(base_url=url, headers=headers, timeout=60) as ann,
                httpx2.Client(base_url=url, timeout=60) as anybody,
            ):
                yield Front(server, url, folder, files, ann, anybody)


def names(front: Front) -> list[str]:
    return [path.name for path in front.files.iterdir() if path.is_file()]


def test_nginx_sends_the_file_once(front: Front):
    url = share(front.ann, CONTENT * 300, "photo.png")
    assert url.startswith(front.url)
    got = front.anybody.get(url)
    assert (got.status_code, got.content, got.headers["content-type"]) == (200, CONTENT * 300, "image/png")
    assert got.headers["server"].startswith("nginx") and "x-accel-redirect" not in got.headers
    demand_error(front.anybody.get(url), 410, "Gone")
    sent = [
        line for line in front.server.log if '"GET"' in line and "/api/v1.0/file/" in line and '"status":200' in line
    ]
    assert sent and '"sent":0' in sent[-1]  # the server itself has sent nothing


def test_the_file_is_as_safe_as_without_nginx(front: Front):
    got = front.anybody.get(share(front.ann, b"<script>", "evil'\".html"))
    headers = got.headers
    assert headers["content-disposition"].startswith("attachment; filename=") and headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff" and "sandbox" in headers["content-security-policy"]
    for absent in ("etag", "last-modified", "accept-ranges"):
        assert headers.get(absent, "none") == "none"


@pytest.mark.parametrize(
    "headers",
    [
        {"Range": "bytes=0-0"},
        {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"},
        {"If-None-Match": "*"},
        {"If-Match": '"x"'},
        {"If-Unmodified-Since": "Fri, 01 Jan 1999 00:00:00 GMT"},
    ],
)
def test_ranges_and_conditions_are_ignored(front: Front, headers: dict[str, str]):
    got = front.anybody.get(share(front.ann), headers=headers)
    assert (got.status_code, got.content) == (200, CONTENT)


def test_an_empty_file_too(front: Front):
    got = front.anybody.get(share(front.ann, b""))
    assert (got.status_code, got.content) == (200, b"")


def test_of_two_hundred_through_nginx_exactly_one_wins(front: Front):
    assert many(share(front.ann, bytes(MIB)), 200) == {200: 1, 410: 199}


def test_the_page_gets_it_from_nginx_too(front: Front):
    url = share(front.ann, password="secret")
    wrong = front.anybody.post(page_of(url), data={"password": "x"})
    assert wrong.status_code == 401 and "not the share" in wrong.text
    assert front.anybody.post(page_of(url), data={"password": "secret"}).content == CONTENT


def test_errors_are_the_documents_also_through_nginx(front: Front):
    demand_error(front.anybody.get(f"{API}/{'0' * 32}"), 404, "Not Found")
    demand_error(front.anybody.put(API, files={"file": ("a", b"a")}), 401, "Unauthorized")
    demand_error(front.ann.put(API, files={"file": ("a", bytes(16 * MIB + 1))}), 413, "Request Entity Too Large")
    assert front.ann.put(API, files={"file": ("a", bytes(16 * MIB))}).status_code == 201


def test_nobody_comes_to_the_files_from_outside(front: Front):
    url = share(front.ann)
    (name,) = [n for n in names(front) if (front.files / n).read_bytes() == CONTENT][:1]
    for path in (
        f"/shared-files/{name}", "/shared-files/", f"/shared-files/../shared-files/{name}", f"//shared-files/{name}",
        f"/x/..%2fshared-files/{name}", "/shared-files/tmp/",
    ):  # fmt: skip
        answer = front.anybody.get(path)
        assert answer.status_code in (401, 404) and CONTENT not in answer.content, path
    assert front.anybody.get(url).content == CONTENT


def test_what_a_client_says_of_the_way_is_not_believed(front: Front):
    mine = {
        "X-Accel-Redirect": "/shared-files/x", "X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "gopher",
        "X-Sendfile-Type": "X-Accel-Redirect", "X-Accel-Mapping": "/=/", "Forwarded": "for=203.0.113.9",
    }  # fmt: skip
    got = front.anybody.get(share(front.ann), headers=mine)
    assert got.content == CONTENT
    marked = front.anybody.get("/healthz", headers=mine).headers["x-request-id"]
    end = time.monotonic() + 30
    while not (found := [line for line in front.server.log if marked in line]):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert "203.0.113.9" not in found[0] and '"address":"127.0.0.1"' in found[0]


def test_wrong_passwords_are_counted_by_the_clients_address_whatever_it_says(front: Front):
    url = share(front.ann, password="secret")
    tried = [
        front.anybody.get(url, params={"password": "x"}, headers={"X-Forwarded-For": f"203.0.113.{n}"})
        for n in range(6)
    ]
    assert [answer.status_code for answer in tried] == [401] * 5 + [429]


def test_who_comes_past_nginx_gets_the_file_from_the_server_itself(front: Front):
    url = share(front.ann)
    with front.server.anonymous() as direct:
        got = direct.get(httpx2.URL(url).path)
    assert got.content == CONTENT and "x-accel-redirect" not in got.headers


def test_the_file_is_removed_also_while_nginx_still_sends_it(front: Front):
    content = bytes(16 * MIB)
    url = share(front.ann, content)
    before = set(names(front))
    with front.anybody.stream("GET", url) as slow:
        pieces = slow.iter_raw()
        got = len(next(pieces))
        end = time.monotonic() + 60
        while before & set(names(front)) == before:
            assert time.monotonic() < end
            time.sleep(0.1)
        got += sum(len(piece) for piece in pieces)
    assert got == len(content)


def test_no_log_of_nginx_has_an_address_or_a_password(front: Front):
    url = share(front.ann, password="a-secret-word")
    front.anybody.get(url, params={"password": "a-wrong-word"})
    front.anybody.get(page_of(url))
    front.anybody.get(url, params={"password": "a-secret-word"})
    front.anybody.get(url + "/%00", params={"password": "a-secret-word"})
    front.anybody.get("/healthz", params={"next": url}, headers={"Referer": front.url + page_of(url)})
    logs = (front.folder / "access.log").read_text() + (front.folder / "error.log").read_text()
    assert "/healthz" in logs
    assert url.rpartition("/")[2] not in logs and "-word" not in logs


def test_the_configuration_says_what_the_settings_say():
    text = CONFIGURATION.read_text()
    assert re.search(r'accel = "(/shared-files)"', text) and "location /shared-files/ {" in text
    assert 'folder = "/srv/holdfast-shares"' in text and "alias /srv/holdfast-shares/;" in text
