"""OAuth2 as the room does it: every flow, and everything that must not work. On SQLite and PostgreSQL."""

from __future__ import annotations

import base64
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa

from holdfast.accounts.asking import Answer, Asked
from holdfast.accounts.clients import CODE, CREDENTIALS, DEVICE, OURS, REFRESH
from holdfast.accounts.directory import Identity
from holdfast.accounts.flows import ACCESS_S, CODE_S, DEVICE_S, MOST_WAITING, POLL_S, REFRESH_S
from holdfast.accounts.guard import MOST
from holdfast.accounts.oauth import Consent
from holdfast.accounts.scopes import ALL_SCOPES, USER_SCOPES
from holdfast.catalog.database import Database
from holdfast.catalog.tables import metadata
from holdfast.errors import Forbidden, NoAccount, NotLoggedIn, TooManyAttempts, UsageError
from tests.accounts.making import HOME, PASSWORD, House
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


@pytest.fixture
def house(database: Database) -> House:
    return House(database)


@pytest.fixture
def ann(house: House) -> Identity:
    return house.user("ann")


def registered(house: House, by: Identity, **about: Any) -> Program:
    about = {"redirect_uris": [CALLBACK], "scopes": SCOPES, **about}
    secret, client = house.oauth.clients.register(by, "an app", **about)
    return Program(house, client.id, secret)


@pytest.fixture
def app(house: House, ann: Identity) -> Program:
    """With a secret."""
    return registered(house, ann)


@pytest.fixture
def phone(house: House, ann: Identity) -> Program:
    """Without one."""
    return registered(house, ann, public=True)


@pytest.fixture
def robot(house: House, ann: Identity) -> Program:
    return registered(house, ann, allowed=[CREDENTIALS], redirect_uris=[])


# -- registering a client ----------------------------------------------------------------------------------------------


def test_a_client_is_registered_listed_and_removed(house: House, ann: Identity) -> None:
    secret, made = house.oauth.clients.register(ann, "an app", redirect_uris=[CALLBACK], scopes=SCOPES)
    assert secret is not None and secret.startswith("hfs_") and made.digest is not None
    assert house.oauth.clients.registered(ann) == [made]
    assert house.oauth.clients.registered(house.admin) == []
    with pytest.raises(NoAccount):
        house.oauth.clients.remove(house.admin, made.id)
    house.oauth.clients.remove(ann, made.id)
    assert house.oauth.clients.registered(ann) == []


def test_a_public_client_has_no_secret(house: House, ann: Identity) -> None:
    secret, made = house.oauth.clients.register(ann, "an app", redirect_uris=[CALLBACK], scopes=SCOPES, public=True)
    assert secret is None and made.digest is None


def test_our_own_command_line_is_a_client_that_nobody_removes(house: House) -> None:
    for number in (OURS, "", "nobody", "a\0b", "x" * 5000):
        with pytest.raises(NoAccount):
            house.oauth.clients.remove(house.admin, number)
    assert house.oauth.device(asking_for_device(OURS)).status == 200


@pytest.mark.parametrize(
    "uri",
    [
        CALLBACK, "https://app.example.org", "https://app.example.org:8443/cb?a=b", "http://127.0.0.1/cb",
        "http://127.0.0.1:8000/cb", "http://[::1]:8000/cb", "http://localhost/cb", "org.example.app:/cb",
        "org.example.app://cb",
    ],
)  # fmt: skip
def test_redirect_uris_that_will_do(house: House, ann: Identity, uri: str) -> None:
    _, made = house.oauth.clients.register(ann, "an app", redirect_uris=[uri], scopes=SCOPES)
    assert made.redirect_uris == uri


@pytest.mark.parametrize(
    "uri",
    [
        "", "/callback", "app.example.org", "http://app.example.org/cb", "http://127.0.0.1.example.org/",
        "http://localhost.example.org/", "http://127.0.0.1@example.org/", "https://user@app.example.org/",
        "https://app.example.org/#there", "https:///cb", "https://", "javascript:alert(1)", "data:text/html,x",
        "file:///etc/passwd", "myapp:/cb", "https://app.example.org/a b", "https://app.example.org/\n", "https://a;b/",
        "https://ä.example.org/", "https://app.example.org\\@example.net/", "https://[::1", "https://a:99999999/",
        "x" * 5000, "https://a/" + "x" * 5000, "java.script:alert(1)\n", "https://app.example.org/'\"><script>",
    ],
)  # fmt: skip
def test_redirect_uris_that_will_not_do_are_refused(house: House, ann: Identity, uri: str) -> None:
    with pytest.raises(UsageError, match="redirect URI"):
        house.oauth.clients.register(ann, "an app", redirect_uris=[uri], scopes=SCOPES)


@pytest.mark.parametrize(
    "about",
    [
        {"scopes": []}, {"scopes": ["files"]}, {"allowed": []}, {"allowed": ["password"]}, {"allowed": [REFRESH]},
        {"redirect_uris": []}, {"public": True, "allowed": [CREDENTIALS]}, {"redirect_uris": [CALLBACK] * 21},
    ],
)  # fmt: skip
def test_clients_that_make_no_sense_are_refused(house: House, ann: Identity, about: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        registered(house, ann, **about)
    assert house.oauth.clients.registered(ann) == []


def test_a_client_has_no_scope_that_its_maker_lacks(house: House, ann: Identity) -> None:
    with pytest.raises(Forbidden, match="admin"):
        registered(house, ann, scopes=["admin"])


# -- the code flow -----------------------------------------------------------------------------------------------------


def test_a_person_is_asked_what_a_program_wants(house: House, ann: Identity, app: Program) -> None:
    asked = house.oauth.consent(app.authorizing(scope="files:read"), ann)
    assert asked == Consent("an app", "ann", ("files:read",), CALLBACK)


def test_a_code_is_exchanged_for_tokens_that_act_for_the_person(house: House, ann: Identity, app: Program) -> None:
    bob = house.user("bob")
    answer = house.oauth.decide(app.authorizing(), bob, True)
    told = query(answer.location)
    assert answer.location.startswith(CALLBACK + "?") and told.keys() == {"code", "state", "iss"}
    assert (told["state"], told["iss"]) == ("a state", ISSUER)
    tokens = app.exchange(told["code"]).body
    assert (tokens["token_type"], tokens["expires_in"], tokens["scope"]) == ("Bearer", 3600, "files:read files:write")
    by = house.oauth.by_access_token(tokens["access_token"], HOME)
    assert (by.username, by.scopes, by.via) == ("bob", frozenset(SCOPES), "oauth")


def test_a_person_who_denies_gives_no_code(house: House, ann: Identity, app: Program) -> None:
    told = query(house.oauth.decide(app.authorizing(), ann, False).location)
    assert told["error"] == "access_denied" and told["state"] == "a state" and "code" not in told


def test_a_code_works_once_and_using_it_again_ends_what_came_of_it(house: House, ann: Identity, phone: Program) -> None:
    verifier, challenge = pkce.pair()
    code = phone.code(ann, challenge)
    tokens = phone.exchange(code, verifier).body
    refreshed = phone.token(REFRESH, refresh_token=tokens["refresh_token"]).body
    house.clock.passes(CODE_S + 1)
    assert error(phone.exchange(code, verifier)) == "invalid_grant"
    for ended in (tokens["access_token"], refreshed["access_token"]):
        with pytest.raises(NotLoggedIn):
            house.oauth.by_access_token(ended, HOME)
    assert error(phone.token(REFRESH, refresh_token=refreshed["refresh_token"])) == "invalid_grant"


def test_of_many_with_the_same_code_one_gets_tokens(house: House, ann: Identity, app: Program) -> None:
    code = app.code(ann)
    answers = at_once(lambda: app.exchange(code))
    assert sorted(answer.status for answer in answers) == [200] + [400] * 7


def test_a_code_counts_for_five_minutes(house: House, ann: Identity, app: Program) -> None:
    young, old = app.code(ann), app.code(ann)
    house.clock.passes(CODE_S - 1)
    assert app.exchange(young).status == 200
    house.clock.passes(1)
    assert error(app.exchange(old)) == "invalid_grant"


def test_a_code_is_of_one_client(house: House, ann: Identity, app: Program) -> None:
    code, other = app.code(ann), registered(house, ann)
    assert error(other.exchange(code)) == "invalid_grant"
    assert app.exchange(code).status == 200


def test_a_code_is_of_one_redirect_uri(house: House, ann: Identity, app: Program) -> None:
    for uri in ("https://app.example.org/other", ""):
        code = app.code(ann)
        assert error(app.exchange(code, redirect_uri=uri)) == "invalid_grant"
        assert error(app.exchange(code)) == "invalid_grant"  # shown once, it is used


def test_a_wrong_verifier_gets_nothing_and_the_code_is_used(house: House, ann: Identity, phone: Program) -> None:
    verifier, challenge = pkce.pair()
    for wrong in ("", pkce.pair()[0], "short", challenge, verifier + "\n"):
        code = phone.code(ann, challenge)
        assert error(phone.exchange(code, wrong)) in ("invalid_grant", "invalid_request")
        assert error(phone.exchange(code, verifier)) == "invalid_grant"


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"code_challenge": "c" * 43}, {"code_challenge": "c" * 43, "code_challenge_method": "plain"},
        {"code_challenge_method": "S256"}, {"code_challenge": "short", "code_challenge_method": "S256"},
        {"code_challenge": "", "code_challenge_method": "S256"},
        {"code_challenge": "c" * 43, "code_challenge_method": ""},
    ],
)  # fmt: skip
def test_a_public_client_without_a_sound_challenge_gets_no_code(
    house: House, ann: Identity, phone: Program, fields: dict[str, str]
) -> None:
    for answer in (
        house.oauth.consent(phone.authorizing(**fields), ann),
        house.oauth.decide(phone.authorizing(**fields), ann, True),
    ):
        assert isinstance(answer, Answer)
        assert query(answer.location)["error"] == "invalid_request" and query(answer.location)["state"] == "a state"


def test_a_client_with_a_secret_may_use_pkce_and_then_must(house: House, ann: Identity, app: Program) -> None:
    verifier, challenge = pkce.pair()
    assert app.exchange(app.code(ann, challenge), verifier).status == 200
    assert error(app.exchange(app.code(ann, challenge))) == "invalid_request"
    assert error(app.exchange(app.code(ann), verifier)) == "invalid_request"
    plain = house.oauth.decide(app.authorizing(code_challenge=verifier, code_challenge_method="plain"), ann, True)
    assert query(plain.location)["error"] == "invalid_request"


@pytest.mark.parametrize(
    "uri",
    [
        "", "https://app.example.org/callback/", "https://app.example.org/callback?x=1", "https://APP.example.org/callback",
        "http://app.example.org/callback", "https://app.example.org:443/callback", "https://evil.example.org/callback",
        "https://app.example.org/callback\n", "https://app.example.org/%63allback", 'https://"<>\\', "ä\0",
    ],
)  # fmt: skip
def test_a_redirect_uri_that_does_not_match_leads_nowhere(house: House, ann: Identity, app: Program, uri: str) -> None:
    for answer in (
        house.oauth.consent(app.authorizing(redirect_uri=uri), ann),
        house.oauth.consent(app.authorizing(redirect_uri=uri), None),
        house.oauth.consent(app.authorizing(redirect_uri=uri, response_type="token"), ann),
        house.oauth.decide(app.authorizing(redirect_uri=uri), ann, True),
        house.oauth.decide(app.authorizing(redirect_uri=uri), ann, False),
    ):
        assert isinstance(answer, Answer) and answer.location == "" and answer.status == 400


@pytest.mark.parametrize("number", ["", "nobody", "a\0b", "hfc_" + "0" * 24, 'x"\\y', "x" * 5000])
def test_an_unknown_client_leads_nowhere(house: House, ann: Identity, app: Program, number: str) -> None:
    answer = house.oauth.consent(app.authorizing(client_id=number), ann)
    assert isinstance(answer, Answer) and answer.location == "" and answer.status == 400


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_on_loopback_any_port_will_do_and_nothing_else_may_differ(house: House, ann: Identity, host: str) -> None:
    here = registered(house, ann, redirect_uris=[f"http://{host}:1234/cb"], public=True)
    verifier, challenge = pkce.pair()
    for there in (f"http://{host}:54321/cb", f"http://{host}/cb", f"http://{host}:1234/cb"):
        code = here.code(ann, challenge, redirect_uri=there)
        assert here.exchange(code, verifier, there).status == 200
    others = {"127.0.0.1", "[::1]", "localhost", "127.0.0.2", "127.0.0.1.example.org"} - {host}
    wrong = [f"http://{host}:1/other", f"https://{host}:1/cb", f"http://{host}:1@example.org/cb", f"http://{host}:x/cb"]
    for there in [*wrong, *(f"http://{other}:1/cb" for other in others)]:
        answer = house.oauth.consent(here.authorizing(challenge, redirect_uri=there), ann)
        assert isinstance(answer, Answer) and answer.location == ""


@pytest.mark.parametrize("kind", ["token", "code token", "code id_token", "", "ä", '"', "\n"])
def test_only_codes_are_given_out(house: House, ann: Identity, app: Program, kind: str) -> None:
    answer = house.oauth.consent(app.authorizing(response_type=kind), ann)
    assert isinstance(answer, Answer) and query(answer.location)["error"] == "unsupported_response_type"


def test_a_client_without_the_code_grant_gets_no_code(house: House, ann: Identity, app: Program) -> None:
    robot = registered(house, ann, allowed=[CREDENTIALS])
    answer = house.oauth.consent(robot.authorizing(), ann)
    assert isinstance(answer, Answer) and query(answer.location)["error"] == "unauthorized_client"


# -- scopes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["admin", "files:read blobs:read", "files:delete", "ä", "files:read\0", '"'])
def test_a_scope_that_the_client_does_not_have_is_refused(
    house: House, ann: Identity, app: Program, scope: str
) -> None:
    answer = house.oauth.decide(app.authorizing(scope=scope), ann, True)
    assert query(answer.location)["error"] == "invalid_scope"
    robot = registered(house, ann, allowed=[CREDENTIALS])
    assert error(robot.token(CREDENTIALS, scope=scope)) == "invalid_scope"


def test_a_scope_that_the_person_does_not_have_is_not_granted(house: House, ann: Identity) -> None:
    greedy = registered(house, house.admin, scopes=["admin", "files:read"])
    asked = house.oauth.consent(greedy.authorizing(), ann)
    assert isinstance(asked, Consent) and asked.scopes == ("files:read",)
    tokens = greedy.granted(ann)
    assert tokens["scope"] == "files:read"
    assert house.oauth.by_access_token(tokens["access_token"], HOME).scopes == {"files:read"}
    only_admin = house.oauth.decide(greedy.authorizing(scope="admin"), ann, True)
    assert query(only_admin.location)["error"] == "access_denied"


def test_a_token_may_no_more_than_its_account_has_come_to(house: House) -> None:
    house.directory.create(house.admin, "bob", PASSWORD, role="admin")
    bob = house.log_in("bob")
    everything = registered(house, bob, scopes=ALL_SCOPES)
    tokens = everything.granted(bob)
    assert house.oauth.by_access_token(tokens["access_token"], HOME).scopes == ALL_SCOPES
    house.directory.change(house.admin, "bob", {"role": "user"})
    assert house.oauth.by_access_token(tokens["access_token"], HOME).scopes == USER_SCOPES
    refreshed = everything.token(REFRESH, refresh_token=tokens["refresh_token"])
    assert "admin" not in refreshed.body["scope"]


# -- refreshing --------------------------------------------------------------------------------------------------------


def test_a_refresh_token_is_exchanged_for_a_new_pair(house: House, ann: Identity, phone: Program) -> None:
    first = phone.granted(ann)
    house.clock.passes(ACCESS_S)
    with pytest.raises(NotLoggedIn):
        house.oauth.by_access_token(first["access_token"], HOME)
    second = phone.token(REFRESH, refresh_token=first["refresh_token"]).body
    assert second["refresh_token"] != first["refresh_token"]
    assert house.oauth.by_access_token(second["access_token"], HOME).username == "ann"


def test_a_refresh_token_used_again_ends_its_whole_family(house: House, ann: Identity, phone: Program) -> None:
    first, other = phone.granted(ann), phone.granted(ann)
    second = phone.token(REFRESH, refresh_token=first["refresh_token"]).body
    third = phone.token(REFRESH, refresh_token=second["refresh_token"]).body
    assert error(phone.token(REFRESH, refresh_token=first["refresh_token"])) == "invalid_grant"
    for ended in (first, second, third):
        with pytest.raises(NotLoggedIn):
            house.oauth.by_access_token(ended["access_token"], HOME)
        assert error(phone.token(REFRESH, refresh_token=ended["refresh_token"])) == "invalid_grant"
    assert house.oauth.by_access_token(other["access_token"], HOME).username == "ann"
    assert "used again" in str(house.directory.audit(house.admin, 3))


def test_of_many_with_the_same_refresh_token_one_is_first(house: House, ann: Identity, phone: Program) -> None:
    token = phone.granted(ann)["refresh_token"]
    answers = at_once(lambda: phone.token(REFRESH, refresh_token=token))
    assert sorted(answer.status for answer in answers) == [200] + [400] * 7


def test_a_refresh_token_lasts_thirty_days_from_its_last_use(house: House, ann: Identity, phone: Program) -> None:
    tokens = phone.granted(ann)
    for _ in range(3):
        house.clock.passes(REFRESH_S - 1)
        tokens = dict(phone.token(REFRESH, refresh_token=tokens["refresh_token"]).body)
    house.clock.passes(REFRESH_S)
    assert error(phone.token(REFRESH, refresh_token=tokens["refresh_token"])) == "invalid_grant"


def test_refreshing_may_narrow_and_never_widen(house: House, ann: Identity, phone: Program) -> None:
    tokens = phone.granted(ann, scope="files:read")
    wide = phone.token(REFRESH, refresh_token=tokens["refresh_token"], scope="files:read files:write")
    assert error(wide) == "invalid_scope"
    both = phone.granted(ann)
    narrow = phone.token(REFRESH, refresh_token=both["refresh_token"], scope="files:read").body
    assert house.oauth.by_access_token(narrow["access_token"], HOME).scopes == {"files:read"}
    again = phone.token(REFRESH, refresh_token=narrow["refresh_token"]).body
    assert again["scope"] == "files:read files:write"


def test_a_refresh_token_is_of_one_client_and_no_access_token(house: House, ann: Identity, phone: Program) -> None:
    tokens, other = phone.granted(ann), registered(house, ann, public=True)
    assert error(other.token(REFRESH, refresh_token=tokens["refresh_token"])) == "invalid_grant"
    assert error(phone.token(REFRESH, refresh_token=tokens["access_token"])) == "invalid_grant"
    with pytest.raises(NotLoggedIn):
        house.oauth.by_access_token(tokens["refresh_token"], HOME)
    assert phone.token(REFRESH, refresh_token=tokens["refresh_token"]).status == 200


# -- client credentials, and who the client is -------------------------------------------------------------------------


def test_credentials_act_as_the_account_that_made_the_client(house: House, robot: Program) -> None:
    tokens = robot.token(CREDENTIALS).body
    assert "refresh_token" not in tokens
    assert house.oauth.by_access_token(tokens["access_token"], HOME).username == "ann"
    posted = {"grant_type": CREDENTIALS, "client_id": robot.number, "client_secret": str(robot.secret)}
    assert house.oauth.token(Asked("POST", "", posted, {}, ISSUER)).status == 200


@pytest.mark.parametrize("secret", ["", "hfs_wrong", "ä", "x" * 5000, "\0"])
def test_a_wrong_secret_is_refused(house: House, robot: Program, secret: str) -> None:
    answer = Program(house, robot.number, secret or " ").token(CREDENTIALS)
    assert (error(answer), answer.status) == ("invalid_client", 401) and "WWW-Authenticate" in answer.headers
    posted = {"grant_type": CREDENTIALS, "client_id": robot.number, "client_secret": secret}
    assert error(house.oauth.token(Asked("POST", "", posted, {}, ISSUER))) == "invalid_client"


@pytest.mark.parametrize(
    "header", ["Basic", "Basic ", "Basic !!!", "Basic ä", "Basic /////w==", "Basic YQ==", "Bearer x", ""]
)
def test_an_authorization_that_is_none_is_refused(house: House, robot: Program, header: str) -> None:
    asked = Asked("POST", "", {"grant_type": CREDENTIALS}, {"authorization": header}, ISSUER)
    assert error(house.oauth.token(asked)) == "invalid_client"


def test_a_client_with_a_secret_must_show_it(house: House, ann: Identity, app: Program) -> None:
    tokens, code = app.granted(ann), app.code(ann)
    bare = Program(house, app.number, None)
    assert error(bare.exchange(code)) == "invalid_client"
    assert error(bare.token(REFRESH, refresh_token=tokens["refresh_token"])) == "invalid_client"
    assert app.exchange(code).status == 200


def test_a_public_client_has_no_credentials(phone: Program, app: Program) -> None:
    assert error(phone.token(CREDENTIALS)) == "invalid_client"
    assert error(app.token(CREDENTIALS)) == "unauthorized_client"


@pytest.mark.parametrize("kind", ["password", "", "ä", '"\\', "implicit"])
def test_a_grant_that_is_none_is_refused(app: Program, kind: str) -> None:
    answer = app.token(kind)
    assert error(answer) == "unsupported_grant_type" and str(answer.body.get("error_description", "")).isascii()


def test_what_is_missing_is_said_to_be(house: House, app: Program) -> None:
    assert error(house.oauth.token(app.asking())) == "invalid_request"
    for kind in (CODE, REFRESH, DEVICE):
        if kind != DEVICE:
            assert error(app.token(kind)) == "invalid_request"
    assert error(house.oauth.revoke(app.asking())) == "invalid_request"
    assert error(house.oauth.introspect(app.asking())) == "invalid_request"


@pytest.mark.parametrize("secret", ["", "hfa_", "hfa_nonsense", "\0", "\udcff", "x" * 100_000])
def test_what_is_no_token_is_refused(house: House, phone: Program, secret: str) -> None:
    with pytest.raises(NotLoggedIn):
        house.oauth.by_access_token(secret, HOME)
    assert error(phone.token(REFRESH, refresh_token=secret)) == "invalid_grant"
    assert error(phone.exchange(secret, "v" * 43)) == "invalid_grant"


# -- device codes ------------------------------------------------------------------------------------------------------


def asking_for_device(number: str, **fields: str) -> Asked:
    return Asked("POST", f"{ISSUER}/oauth2/device", {"client_id": number, **fields}, {}, ISSUER, HOME)


@pytest.fixture
def television(house: House) -> Program:
    return Program(house, OURS, None)


def device(house: House, **fields: str) -> dict[str, Any]:
    answer = house.oauth.device(asking_for_device(OURS, **fields))
    assert answer.status == 200, answer
    return dict(answer.body)


def test_a_device_gets_tokens_when_its_user_has_typed_the_code(
    house: House, ann: Identity, television: Program
) -> None:
    codes = device(house, scope="files:read files:write admin")
    assert codes["verification_uri"] == f"{ISSUER}/oauth2/verify"
    assert codes["verification_uri_complete"].endswith(f"?user_code={codes['user_code']}")
    assert error(television.token(DEVICE, device_code=codes["device_code"])) == "authorization_pending"
    typed = codes["user_code"].lower().replace("-", " ")
    asked = house.oauth.waiting(ann, typed)
    assert asked == Consent("Holdfast's command line", "", ("files:read", "files:write"), address=HOME)
    house.oauth.decide_device(ann, typed, True)
    tokens = television.token(DEVICE, device_code=codes["device_code"]).body
    assert tokens["scope"] == "files:read files:write" and tokens["refresh_token"]
    assert house.oauth.by_access_token(tokens["access_token"], HOME).username == "ann"
    assert television.token(REFRESH, refresh_token=tokens["refresh_token"]).status == 200


def test_without_naming_scopes_the_command_line_gets_all_that_the_person_may(
    house: House, ann: Identity, television: Program
) -> None:
    codes = device(house)
    house.oauth.decide_device(ann, codes["user_code"], True)
    tokens = television.token(DEVICE, device_code=codes["device_code"]).body
    assert frozenset(tokens["scope"].split()) == USER_SCOPES


def test_a_device_code_works_once(house: House, ann: Identity, television: Program) -> None:
    codes = device(house)
    house.oauth.decide_device(ann, codes["user_code"], True)
    answers = at_once(lambda: television.token(DEVICE, device_code=codes["device_code"]))
    assert sorted(answer.status for answer in answers) == [200] + [400] * 7
    with pytest.raises(NoAccount):
        house.oauth.decide_device(ann, codes["user_code"], True)


def test_a_device_that_asks_too_often_is_slowed_more_and_more(house: House, television: Program) -> None:
    codes, told = device(house), []
    for pause in (0, POLL_S, POLL_S - 1, POLL_S, 3 * POLL_S, POLL_S):
        house.clock.passes(pause)
        told.append(error(television.token(DEVICE, device_code=codes["device_code"])))
    pending, slow = "authorization_pending", "slow_down"
    assert told == [pending, pending, slow, slow, pending, slow]


def test_a_device_is_told_when_its_user_says_no(house: House, ann: Identity, television: Program) -> None:
    codes = device(house)
    house.oauth.decide_device(ann, codes["user_code"], False)
    assert error(television.token(DEVICE, device_code=codes["device_code"])) == "access_denied"


def test_a_device_code_expires(house: House, ann: Identity, television: Program) -> None:
    codes = device(house)
    house.clock.passes(DEVICE_S)
    assert error(television.token(DEVICE, device_code=codes["device_code"])) == "expired_token"
    with pytest.raises(NoAccount):
        house.oauth.waiting(ann, codes["user_code"])


def test_a_device_code_is_of_one_client(house: House, ann: Identity) -> None:
    other, codes = registered(house, ann, allowed=[DEVICE], public=True), device(house)
    house.oauth.decide_device(ann, codes["user_code"], True)
    assert error(other.token(DEVICE, device_code=codes["device_code"])) == "unauthorized_client"
    for nonsense in ("x", "\0", "ä"):
        assert error(other.token(DEVICE, device_code=nonsense)) == "invalid_grant"


def test_guessing_user_codes_is_slow(house: House, ann: Identity) -> None:
    codes = device(house)
    for guess in range(MOST):
        with pytest.raises(NoAccount):
            house.oauth.waiting(ann, f"BBBB-BBB{'BCDFGHJKLM'[guess]}" if guess else "\0")
    with pytest.raises(TooManyAttempts):
        house.oauth.waiting(ann, codes["user_code"])
    assert house.oauth.waiting(house.user("bob"), codes["user_code"]).address == HOME


def test_one_address_does_not_fill_the_catalog_with_codes(house: House) -> None:
    for _ in range(MOST_WAITING):
        device(house)
    assert error(house.oauth.device(asking_for_device(OURS))) == "slow_down"
    house.clock.passes(DEVICE_S)
    device(house)


def test_a_client_without_the_device_grant_gets_no_device_code(house: House, phone: Program) -> None:
    assert error(house.oauth.device(asking_for_device(phone.number))) == "unauthorized_client"
    assert error(house.oauth.device(asking_for_device("nobody"))) == "invalid_client"
    assert error(house.oauth.device(asking_for_device(OURS, scope="files:delete"))) == "invalid_scope"


# -- revoking and asking about -----------------------------------------------------------------------------------------


def test_revoking_an_access_token_ends_that_one(house: House, ann: Identity, phone: Program) -> None:
    tokens = phone.granted(ann)
    assert house.oauth.revoke(phone.asking(token=tokens["access_token"], token_type_hint="nonsense")).status == 200
    with pytest.raises(NotLoggedIn):
        house.oauth.by_access_token(tokens["access_token"], HOME)
    assert phone.token(REFRESH, refresh_token=tokens["refresh_token"]).status == 200


def test_revoking_a_refresh_token_ends_all_of_it(house: House, ann: Identity, app: Program) -> None:
    tokens = app.granted(ann)
    assert house.oauth.revoke(app.asking(token=tokens["refresh_token"])).status == 200
    with pytest.raises(NotLoggedIn):
        house.oauth.by_access_token(tokens["access_token"], HOME)
    assert error(app.token(REFRESH, refresh_token=tokens["refresh_token"])) == "invalid_grant"


def test_revoking_is_for_the_tokens_client_only(house: House, ann: Identity, app: Program, phone: Program) -> None:
    tokens = app.granted(ann)
    assert error(house.oauth.revoke(phone.asking(token=tokens["access_token"]))) == "invalid_grant"
    assert house.oauth.by_access_token(tokens["access_token"], HOME).username == "ann"
    assert house.oauth.revoke(phone.asking(token="nonsense\0")).status == 200
    assert error(house.oauth.revoke(Program(house, app.number, None).asking(token="x"))) == "invalid_client"


def test_a_client_learns_about_its_own_tokens_only(house: House, ann: Identity, app: Program) -> None:
    tokens, other = app.granted(ann), registered(house, ann)
    told = house.oauth.introspect(app.asking(token=tokens["access_token"])).body
    now = house.clock.now // 1_000_000_000
    assert told == {
        "active": True, "client_id": app.number, "username": "ann", "sub": "ann", "scope": "files:read files:write",
        "token_type": "Bearer", "iat": now, "exp": now + ACCESS_S, "iss": ISSUER,
    }  # fmt: skip
    assert house.oauth.introspect(app.asking(token=tokens["refresh_token"])).body["active"]
    for asked in (other.asking(token=tokens["access_token"]), app.asking(token="nonsense")):
        assert house.oauth.introspect(asked).body == {"active": False}
    house.clock.passes(ACCESS_S)
    assert house.oauth.introspect(app.asking(token=tokens["access_token"])).body == {"active": False}


def test_an_administrator_learns_about_all_tokens_and_nobody_else_does(
    house: House, ann: Identity, phone: Program
) -> None:
    token = phone.granted(ann)["access_token"]
    asked = Asked("POST", "", {"token": token}, {}, ISSUER)
    assert house.oauth.introspect(asked, house.admin).body["client_id"] == phone.number
    with pytest.raises(Forbidden):
        house.oauth.introspect(asked, ann)
    assert error(house.oauth.introspect(asked)) == "invalid_client"
    assert error(house.oauth.introspect(phone.asking(token=token))) == "invalid_client"


# -- what ends, and what nobody can do ---------------------------------------------------------------------------------


def ends(house: House, program: Program, tokens: dict[str, Any]) -> None:
    with pytest.raises(NotLoggedIn):
        house.oauth.by_access_token(tokens["access_token"], HOME)
    assert error(program.token(REFRESH, refresh_token=tokens["refresh_token"])) in ("invalid_grant", "invalid_client")


@pytest.mark.parametrize(
    "act",
    [
        lambda h, bob: h.directory.change(h.admin, "bob", {"disabled": True}),
        lambda h, bob: h.directory.change(h.admin, "bob", {"password": "another password"}),
        lambda h, bob: h.directory.change_own_password(bob, PASSWORD, "another password"),
        lambda h, bob: h.directory.delete(h.admin, "bob"),
    ],
    ids=["disabled", "password set", "password changed", "deleted"],
)
def test_what_an_account_allowed_ends_with_it_or_its_password(house: House, phone: Program, act: Any) -> None:
    bob = house.user("bob")
    tokens, (verifier, challenge) = phone.granted(bob), pkce.pair()
    code, codes = phone.code(bob, challenge), device(house)
    house.oauth.decide_device(bob, codes["user_code"], True)
    act(house, bob)
    ends(house, phone, tokens)
    assert error(phone.exchange(code, verifier)) == "invalid_grant"
    assert error(Program(house, OURS, None).token(DEVICE, device_code=codes["device_code"])) == "invalid_grant"


def test_a_client_ends_with_its_makers_account(house: House, ann: Identity, phone: Program, robot: Program) -> None:
    bob, token = house.user("bob"), robot.token(CREDENTIALS).body["access_token"]
    tokens = phone.granted(bob)
    house.directory.change(house.admin, "ann", {"disabled": True})
    ends(house, phone, tokens)
    with pytest.raises(NotLoggedIn):
        house.oauth.by_access_token(token, HOME)
    assert error(robot.token(CREDENTIALS)) == "invalid_client"


def test_a_removed_client_ends_with_all_its_tokens(house: House, ann: Identity, phone: Program) -> None:
    tokens, before = phone.granted(house.user("bob")), house.directory.generation
    house.oauth.clients.remove(ann, phone.number)
    ends(house, phone, tokens)
    assert house.directory.generation > before


def test_a_program_makes_itself_no_more_than_it_is(house: House, ann: Identity, app: Program) -> None:
    by = house.oauth.by_access_token(app.granted(ann)["access_token"], HOME)
    for act in (
        lambda: house.directory.create_token(by, "t", ["files:read"]),
        lambda: house.directory.revoke_token(by, 1),
        lambda: house.directory.change_own_password(by, PASSWORD, "another password"),
        lambda: registered(house, by),
        lambda: house.oauth.clients.remove(by, app.number),
        lambda: house.oauth.consent(app.authorizing(), by),
        lambda: house.oauth.decide(app.authorizing(), by, True),
        lambda: house.oauth.waiting(by, "BBBB-BBBB"),
        lambda: house.oauth.decide_device(by, "BBBB-BBBB", True),
    ):
        with pytest.raises(Forbidden, match="A token may not"):
            act()


def test_an_administrators_program_does_not_change_his_password(house: House) -> None:
    app = registered(house, house.admin, scopes=["admin"])
    by = house.oauth.by_access_token(app.granted(house.admin)["access_token"], HOME)
    with pytest.raises(Forbidden):
        house.directory.change(by, "admin", {"password": "another password"})


def test_nothing_that_is_kept_gives_a_secret_away(house: House, ann: Identity, app: Program) -> None:
    verifier, challenge = pkce.pair()
    code, codes = app.code(ann, challenge), device(house)
    tokens = app.exchange(code, verifier).body
    with house.database.reading() as c:
        rows = [str(tuple(row)) for table in metadata.sorted_tables for row in c.execute(sa.select(table))]
    everything = "\n".join(rows)
    assert app.number in everything
    for secret in (
        app.secret, code, verifier, tokens["access_token"], tokens["refresh_token"], codes["device_code"],
        codes["user_code"],
    ):  # fmt: skip
        assert str(secret) not in everything


def test_what_has_expired_does_not_stay_for_ever(house: House, ann: Identity, phone: Program, robot: Program) -> None:
    phone.granted(ann)
    robot.token(CREDENTIALS)
    phone.code(ann, pkce.pair()[1])
    device(house)
    house.clock.passes(REFRESH_S + DEVICE_S + 3600)
    phone.granted(ann)
    device(house)
    with house.database.reading() as c:
        counts = {
            name: c.execute(sa.select(sa.func.count()).select_from(metadata.tables[name])).scalar_one()
            for name in ("grants", "grant_tokens", "codes", "devices")
        }
    assert counts == {"grants": 1, "grant_tokens": 2, "codes": 1, "devices": 1}


def test_the_log_says_who_allowed_what(house: House, ann: Identity, app: Program) -> None:
    app.granted(ann, scope="files:read")
    codes = device(house, scope="files:read")
    house.oauth.decide_device(ann, codes["user_code"], True)
    house.oauth.clients.remove(ann, app.number)
    told = [(e.actor, e.action, e.subject, e.detail) for e in house.directory.audit(house.admin, 4)]
    assert told == [
        ("ann", "client removed", "an app", app.number),
        ("ann", "device approved", "Holdfast's command line", "files:read"),
        ("ann", "client allowed", "an app", "files:read"),
        ("ann", "client registered", "an app", f"{app.number} files:read files:write"),
    ]


def test_an_api_token_makes_only_tokens_that_do_not_outlive_it(house: House, ann: Identity) -> None:
    secret, _ = house.directory.create_token(ann, "short", ["files:read"], expires_in=60)
    by = house.directory.by_token(secret, HOME)
    for expires_in in (None, 61):
        with pytest.raises(Forbidden, match="outlives"):
            house.directory.create_token(by, "long", ["files:read"], expires_in)
    house.directory.create_token(by, "as short", ["files:read"], 60)
    with pytest.raises(Forbidden):
        house.directory.change_own_password(by, PASSWORD, "another password")
    with pytest.raises(Forbidden):
        registered(house, by)


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
