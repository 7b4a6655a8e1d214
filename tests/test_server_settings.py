"""The server's settings: file and environment, and what is said when they make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.errors import UsageError
from holdfast.settings import load_oidc, load_server, load_shares

FILE = """
[server]
port = 1234
[oidc]
issuer = "https://login.example.org"
client_id = "holdfast"
client_secret_file = "/etc/holdfast/secret"
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "holdfast.toml"
    path.write_text(FILE)
    return str(path)


def test_options_win_over_the_environment_and_that_over_the_file(config: str) -> None:
    env = {"HOLDFAST_SERVER__PORT": "2345", "HOLDFAST_SERVER__HOST": "::1"}
    assert load_server({"config": config}, {}).port == 1234
    assert load_server({"config": config}, env).port == 2345
    found = load_server({"config": config, "port": 3456, "host": None}, env)
    assert (found.port, found.host) == (3456, "::1")


def test_without_settings_there_is_no_outside_provider() -> None:
    assert load_oidc({}, {}).issuer == ""


def test_an_outside_provider_stands_in_the_file_or_the_environment(config: str) -> None:
    found = load_oidc({"config": config}, {"HOLDFAST_OIDC__ADMIT": "anyone"})
    assert (found.issuer, found.client_id, found.client_secret_file, found.scopes, found.admit) == (
        "https://login.example.org", "holdfast", "/etc/holdfast/secret", "openid email profile", "anyone",
    )  # fmt: skip


@pytest.mark.parametrize("change", [{"ADMIT": "everybody"}, {"CLIENT_ID": ""}, {"SCOPES": "email"}])
def test_a_provider_that_makes_no_sense_is_refused(config: str, change: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        load_oidc({"config": config}, {f"HOLDFAST_OIDC__{name}": value for name, value in change.items()})


def test_a_setting_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.toml"
    path.write_text('[oidc]\nclient_secret = "here"\n')
    with pytest.raises(UsageError, match="client_secret"):
        load_oidc({"config": str(path)}, {})


def test_shares_are_set_by_the_file_and_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.toml"
    path.write_text('[shares]\nmost_bytes = 5\naccel = "/files"\nfolder = "~/shared"\n')
    found = load_shares({"config": str(path)}, {"HOLDFAST_SHARES__MOST_BYTES": "6"})
    assert (found.most_bytes, found.accel, found.remove_after) == (6, "/files", 30.0)
    assert found.folder == str(Path("~/shared").expanduser())
    assert load_shares({}, {}).most_bytes == 16 * 1024 * 1024


@pytest.mark.parametrize("setting", ["MOST_BYTES=0", "REMOVE_AFTER=-1", "ACCEL=files", "ACCEL=/a\nb"])
def test_settings_of_shares_that_make_no_sense_are_said(setting: str) -> None:
    name, _, value = setting.partition("=")
    with pytest.raises(UsageError):
        load_shares({}, {f"HOLDFAST_SHARES__{name}": value})
