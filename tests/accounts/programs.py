"""Programs that ask for OAuth2 tokens, as tests need them."""

from __future__ import annotations

import base64
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from holdfast.accounts.asking import Answer, Asked
from holdfast.accounts.clients import CODE, OURS
from holdfast.accounts.directory import Identity
from tests.accounts.making import HOME, House
from tests.support import pkce

ISSUER = "https://backup.example.org"
CALLBACK = "https://app.example.org/callback"
SCOPES = ["files:read", "files:write"]


@dataclass
class Program:
    """A registered client, and what it sends."""

    house: House
    number: str
    secret: str | None

    def headers(self) -> dict[str, str]:
        if self.secret is None:
            return {}
        return {"authorization": "Basic " + base64.b64encode(f"{self.number}:{self.secret}".encode()).decode()}

    def asking(self, **fields: str) -> Asked:
        named = {} if self.secret else {"client_id": self.number}
        return Asked("POST", f"{ISSUER}/oauth2/token", {**named, **fields}, self.headers(), ISSUER, HOME)

    def token(self, grant_type: str, **fields: str) -> Answer:
        return self.house.oauth.token(self.asking(grant_type=grant_type, **fields))

    def authorizing(self, challenge: str = "", **fields: str) -> Asked:
        given = {"response_type": "code", "client_id": self.number, "redirect_uri": CALLBACK, "state": "a state"}
        proof = {"code_challenge": challenge, "code_challenge_method": "S256"} if challenge else {}
        return Asked("GET", f"{ISSUER}/oauth2/authorize", {**given, **proof, **fields}, {}, ISSUER, HOME)

    def code(self, by: Identity, challenge: str = "", **fields: str) -> str:
        answer = self.house.oauth.decide(self.authorizing(challenge, **fields), by, True)
        return query(answer.location)["code"]

    def exchange(self, code: str, verifier: str = "", redirect_uri: str = CALLBACK) -> Answer:
        proof = {"code_verifier": verifier} if verifier else {}
        return self.token(CODE, code=code, redirect_uri=redirect_uri, **proof)

    def granted(self, by: Identity, **fields: str) -> dict[str, Any]:
        """The tokens after the whole code flow."""
        verifier, challenge = pkce.pair()
        answer = self.exchange(self.code(by, challenge, **fields), verifier)
        assert answer.status == 200, answer
        return dict(answer.body)


def query(address: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}


def error(answer: Answer) -> str:
    assert answer.status in (400, 401), answer
    return str(answer.body["error"])


def registered(house: House, by: Identity, **about: Any) -> Program:
    about = {"redirect_uris": [CALLBACK], "scopes": SCOPES, **about}
    secret, client = house.oauth.clients.register(by, "an app", **about)
    return Program(house, client.id, secret)


def asking_for_device(number: str, address: str = HOME, **fields: str) -> Asked:
    return Asked("POST", f"{ISSUER}/oauth2/device", {"client_id": number, **fields}, {}, ISSUER, address)


def device(house: House, **fields: str) -> dict[str, Any]:
    answer = house.oauth.device(asking_for_device(OURS, **fields))
    assert answer.status == 200, answer
    return dict(answer.body)


def at_once(act: Any) -> list[Answer]:
    """The answers to eight that do the same at the same time."""
    begin, answers = threading.Barrier(8), list[Answer]()

    def run() -> None:
        begin.wait()
        answers.append(act())

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers
