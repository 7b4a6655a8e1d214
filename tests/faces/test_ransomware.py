"""What docs/storage.md says against ransomware: a laptop with a write-only key and a token, a vault that is
append-only, and a machine elsewhere with the full key.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from tests.support.commands import Commands
from tests.support.trees import contents, noise, write
from tests.support.vaults import listed, person


@pytest.fixture
def ann(server):
    with contextlib.closing(person(server)) as made:
        yield made


@pytest.fixture
def vault(ann):
    return ann.vault("laptop", append_only=True)


@pytest.fixture
def at_home(server, ann, vault, tmp_path):
    """The machine elsewhere, with the full key: it makes the repository, and the laptop's key."""
    (tmp_path / "home").mkdir()
    called = Commands(
        f"{server.url}/laptop", tmp_path / "none", tmp_path / "home",
        {"HOLDFAST_TOKEN": ann.token, "HOLDFAST_PASSWORD": "at home", "HOLDFAST_KEY_FILE": ""},
    )  # fmt: skip
    called("init")
    called("key", "add", "--write-only", "--new-key-file", tmp_path / "laptop.key")
    return called


@pytest.fixture
def laptop(ann, at_home, tmp_path):
    (tmp_path / "laptop").mkdir()
    return replace(
        at_home, key_file=tmp_path / "laptop.key", folder=tmp_path / "laptop", more={"HOLDFAST_TOKEN": ann.token}
    )


def test_who_has_the_laptop_can_neither_read_nor_destroy_what_it_has_stored(laptop, at_home, ann, vault, tmp_path):
    source = write(tmp_path / "source", {f"f{n}": noise(30_000, n) for n in range(20)})
    laptop("backup", source)
    write(source, {"more": "more"})
    assert "20 unmodified" in laptop("backup", source).text  # it knows its last snapshot without reading it
    before = {kind: listed(ann.program, vault, kind) for kind in ("data", "index", "snapshots", "keys")}
    for command in (
        ("restore", "latest", "--target", tmp_path / "stolen"),
        ("ls", "latest"),
        ("forget", "--keep-last", "1", "--prune"),
        ("prune",),
    ):
        assert laptop(*command, status=None).status != 0, command
    for kind, objects in before.items():
        for name in objects:
            assert ann.program.delete(f"{vault}{kind}/{name}").status_code == 403
            assert ann.program.post(f"{vault}{kind}/{name}", content=b"garbage").status_code in (403, 422)
    assert ann.program.delete(f"{vault}config").status_code in (403, 405)
    assert ann.program.delete(vault).status_code == 403
    assert ann.program.patch(f"/vaults/{ann.name}/laptop", json={"append_only": False}).status_code == 403
    assert {kind: listed(ann.program, vault, kind) for kind in before} == before
    at_home("restore", "latest", "--target", tmp_path / "back", "--verify")
    assert contents(tmp_path / "back") == contents(source)
    assert not (tmp_path / "stolen").exists() or not contents(tmp_path / "stolen")


def test_space_is_freed_from_elsewhere_once_a_person_has_turned_append_only_off(laptop, at_home, ann, vault, tmp_path):
    source = write(tmp_path / "source", {"a": noise(300_000, 1)})
    laptop("backup", source)
    write(source, {"a": noise(300_000, 2)})
    laptop("backup", source)
    assert at_home("forget", "--keep-last", "1", "--prune", status=None).status != 0
    assert len(listed(ann.program, vault, "snapshots")) == 2
    assert ann.person.patch(f"/vaults/{ann.name}/laptop", json={"append_only": False}).status_code == 200
    stored = ann.about(vault)["bytes"]
    at_home("forget", "--keep-last", "1")
    at_home("prune", "--now")
    assert len(listed(ann.program, vault, "snapshots")) == 1
    assert ann.about(vault)["bytes"] < stored - 250_000
    assert "No damage" in at_home("check", "--read-data").text
