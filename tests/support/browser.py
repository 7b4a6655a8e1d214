"""A browser, as far as tests need one: cookies, forms with their hidden fields, and where a form comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import httpx2


class Browser:
    """``close`` it, or use it as a context. It follows redirects within the server and stops at those that leave it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = httpx2.Client(base_url=url, timeout=60)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def open(self, address: str) -> httpx2.Response:
        return self._followed(self.client.get(address))

    def submit(self, page: httpx2.Response, **typed: str) -> httpx2.Response:
        """Send the page's only form, as it stands but for what was typed or pressed."""
        form = form_of(page)
        headers = {"Origin": self.url, "Sec-Fetch-Site": "same-origin"}
        address = urljoin(str(page.url), form.action)
        return self._followed(self.client.post(address, data={**form.fields, **typed}, headers=headers))

    def log_in(self, username: str, password: str, address: str = "/login") -> httpx2.Response:
        """Open a page and log in where it asks for that."""
        return self.submit(self.open(address), username=username, password=password)

    def _followed(self, answer: httpx2.Response) -> httpx2.Response:
        for _ in range(5):
            there = urljoin(str(answer.url), answer.headers.get("location", ""))
            if answer.status_code != 303 or urlsplit(there)[:2] != urlsplit(self.url)[:2]:
                return answer
            answer = self.client.get(there)
        raise AssertionError(f"led in circles: {answer.url}")


@dataclass
class Form:
    action: str = ""
    fields: dict[str, str] = field(default_factory=dict)


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Form] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            assert given["method"] == "post"
            self.found.append(Form(given["action"]))
        elif tag == "input":
            self.found[-1].fields[given["name"]] = given.get("value", "")


def form_of(page: httpx2.Response) -> Form:
    parser = _Forms()
    parser.feed(page.text)
    assert len(parser.found) == 1, page.text
    return parser.found[0]
