"""What is special about storages over SFTP: addresses, who is trusted and who is let in, and connections that end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncssh
import pytest

from holdfast.errors import (
    ObjectExists,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
    UsageError,
)
from holdfast.storage.base import CONFIG, Storage
from holdfast.storage.local import LocalStorage
from holdfast.storage.select import Access, open_storage
from holdfast.storage.sftp import SftpStorage
from holdfast.storage.ssh import read_address
from tests.storage.places.sftp import rclone_access
from tests.storage.writing import an_object, named
from tests.support import rclone, sshd
from tests.support.components import need, need_module
from tests.support.faults import Machine, machine_in
from tests.support.storages import list_of

NAME, DATA = an_object()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
    with sshd.serving(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def machine(tmp_path) -> Iterator[Machine]:
    with machine_in(tmp_path / "machine") as made:
        yield made


@pytest.fixture
def storage(server, tmp_path) -> Iterator[SftpStorage]:
    """A storage in ``tmp_path / "s"``, made and with a config."""
    made = opened(server, tmp_path / "s")
    made.create()
    made.put(CONFIG, [b"config"])
    yield made
    made.close()


def opened(server: sshd.Sshd, path: Path | str, access: Access | None = None, **times: float) -> SftpStorage:
    return SftpStorage(read_address(server.address(path)), access or server.access(), **times)


def another_home(server: sshd.Sshd, folder: Path) -> Path:
    """A home that knows the server, and holds no key."""
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "known_hosts").write_bytes((server.home / ".ssh" / "known_hosts").read_bytes())
    return home


def failure(storage: Storage, kind: type[StorageError] = StorageError) -> str:
    """What it says, with its hint, when it is asked for something."""
    with pytest.raises(kind) as caught:
        storage.stat(CONFIG)
    storage.close()
    assert type(caught.value) is kind
    return f"{caught.value} {caught.value.hint}"


# -- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("sftp://nas/srv", "sftp://nas/srv"),
        ("sftp://nas//srv/b/", "sftp://nas/srv/b"),
        ("sftp://me@nas:2222/srv", "sftp://me@nas:2222/srv"),
        ("sftp://nas/~/b", "sftp://nas/~/b"),
        ("sftp://nas/~", "sftp://nas/~/."),
        ("sftp://nas/", "sftp://nas/"),
        ("sftp://me@[::1]:22/srv", "sftp://me@[::1]:22/srv"),
        ("sftp://me%40here@nas/a%20b", "sftp://me@here@nas/a b"),
        ("sftp:nas:/srv", "sftp://nas/srv"),
        ("sftp:me@nas:b", "sftp://me@nas/~/b"),
        ("sftp:me@nas:~/b", "sftp://me@nas/~/b"),
        ("sftp:me@nas:a@b:c", "sftp://me@nas/~/a@b:c"),
        ("sftp:[::1]:/srv", "sftp://[::1]/srv"),
    ],
)
def test_an_address_means_a_folder(address, place):
    assert open_storage(address, Access()).place == place


@pytest.mark.parametrize(
    "address",
    [
        *("sftp:", "sftp://", "sftp:///srv", "sftp://nas", "sftp:nas", "sftp:nas:", "sftp:/srv", "sftp://nas:port/srv"),
        *(
            "sftp://nas:99999/srv",
            "sftp://-oProxyCommand=x/srv",
            "sftp:-x@nas:/srv",
            "sftp://$(x)/srv",
            "sftp://n as/s",
        ),
        *("sftp://a`x`@nas/srv", "sftp://a;x@nas/srv", "sftp://a%0ax@nas/srv", "sftp://nas/a%00b", "sftp://nas/a%0ab"),
    ],
)
def test_what_is_no_address_is_refused_and_the_hint_shows_one(address):
    with pytest.raises(UsageError) as caught:
        open_storage(address, Access())
    assert "sftp://USER@HOST:PORT/PATH" in caught.value.hint


@pytest.mark.parametrize("address", ["sftp://me:secret@nas/srv", "sftp:me:secret@nas:/srv", "sftp://me:se%40c@nas/s"])
def test_a_password_in_an_address_is_refused_and_not_shown(address):
    with pytest.raises(UsageError) as caught:
        open_storage(address, Access())
    assert "HOLDFAST_SFTP_PASSWORD" in caught.value.hint
    assert "se" not in str(caught.value).replace("storage", "").split()


def test_a_folder_below_the_home_is_meant_by_a_tilde(server):
    if (Path.home() / ".holdfast-test").exists():
        pytest.skip("somebody else's folder is there")
    storage = open_storage(f"{server.address('~/.holdfast-test')}", server.access())
    try:
        storage.create()
        storage.put(CONFIG, [b"x"])
        assert (Path.home() / ".holdfast-test" / "config").read_bytes() == b"x"
    finally:
        storage.close()
        subprocess.run(["rm", "-rf", str(Path.home() / ".holdfast-test")], check=True)


# -- who answers -----------------------------------------------------------------------------------------------------


def test_an_unknown_host_is_refused_with_its_key(server, tmp_path):
    said = failure(opened(server, "/s", Access({}, tmp_path)), StorageDenied)
    shown = asyncssh.read_private_key(server.folder / "host_key").get_fingerprint()
    assert f"ssh-ed25519 {shown}" in said
    assert "127.0.0.1" in said and "ssh-keyscan" in said and "CHANGED" not in said
    assert not (tmp_path / ".ssh").exists()  # nobody was made known


def test_another_file_of_known_hosts_may_be_named(server, tmp_path):
    known = tmp_path / "known"
    known.write_bytes((server.home / ".ssh" / "known_hosts").read_bytes())
    key = str(server.home / ".ssh" / "id_ed25519")
    access = Access({"HOLDFAST_SFTP_KNOWN_HOSTS": str(known), "HOLDFAST_SFTP_KEY_FILE": key}, tmp_path)
    with pytest.raises(ObjectMissing):
        opened(server, tmp_path, access).stat(CONFIG)
    known.write_text("nonsense\n")
    assert "known hosts" in failure(opened(server, tmp_path, access))


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
def test_a_changed_host_key_is_refused_louder(server, tmp_path, kind):
    home = another_home(server, tmp_path)
    other = asyncssh.generate_private_key(kind).export_public_key().decode()
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {other}")
    said = failure(opened(server, "/s", Access({}, home)), StorageDenied)
    assert "HAS CHANGED" in said and "it shows ssh-ed25519 SHA256:" in said


def test_a_revoked_host_key_is_refused(server, tmp_path):
    home = another_home(server, tmp_path)
    known = home / ".ssh" / "known_hosts"
    known.write_text("@revoked " + known.read_text())
    assert "revoked" in failure(opened(server, "/s", Access({}, home)), StorageDenied)


def test_the_key_of_another_port_of_the_machine_makes_it_unknown_not_changed(server, tmp_path):
    home = another_home(server, tmp_path)
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    (home / ".ssh" / "known_hosts").write_text(f"127.0.0.1 {other}")
    assert "is not known" in failure(opened(server, "/s", Access({}, home)), StorageDenied)


def test_no_configuration_switches_the_check_off(server, tmp_path):
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host *\nStrictHostKeyChecking no\nUserKnownHostsFile none\n")
    assert "is not known" in failure(opened(server, "/s", Access({}, tmp_path)), StorageDenied)


def test_nobody_listens(server):
    port = rclone.free_port()
    storage = open_storage(f"sftp://127.0.0.1:{port}/s", server.access())
    assert "refused" in failure(storage, StorageUnavailable).lower()


def test_a_name_nobody_knows(server):
    storage = open_storage("sftp://nobody.invalid/s", server.access())
    assert "name is not known" in failure(storage, StorageUnavailable)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n<html>no</html>", b"SSH-1.5-old\r\n", b""])
def test_what_answers_is_no_ssh(server, answer):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            accepted, _ = listening.accept()
            with accepted:
                accepted.recv(100)
                accepted.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        storage = open_storage(f"sftp://127.0.0.1:{listening.getsockname()[1]}/s", server.access())
        kind = StorageError if answer.startswith(b"SSH") else StorageUnavailable
        said = failure(storage, kind)
        thread.join()
    assert "127.0.0.1" in said and "<html>" not in said


# -- who we are ------------------------------------------------------------------------------------------------------


def test_an_unknown_key_and_no_key_are_not_let_in(server, tmp_path):
    home = another_home(server, tmp_path)
    assert "authorized_keys" in failure(opened(server, "/s", Access({}, home)), StorageDenied)
    sshd.write_key(home / ".ssh" / "id_ecdsa", "ecdsa-sha2-nistp256")
    said = failure(opened(server, "/s", Access({"HOLDFAST_SFTP_PASSWORD": "secret password"}, home)), StorageDenied)
    assert "lets nobody in" in said and "secret password" not in said


@pytest.mark.parametrize("kind", ["pkcs8-pem", "openssh"])
def test_a_key_file_may_have_a_passphrase(server, storage, tmp_path, kind):
    if kind == "openssh":
        need_module("bcrypt")
    key = asyncssh.read_private_key(server.home / ".ssh" / "id_ed25519")
    file = tmp_path / "key"
    file.write_bytes(key.export_private_key(kind, passphrase="open"))
    home = another_home(server, tmp_path)
    right = {"HOLDFAST_SFTP_KEY_FILE": str(file), "HOLDFAST_SFTP_KEY_PASSWORD": "open"}
    client = opened(server, tmp_path / "s", Access(right, home))
    assert client.get(CONFIG) == b"config"
    client.close()
    for wrong in (right | {"HOLDFAST_SFTP_KEY_PASSWORD": "shut"}, {"HOLDFAST_SFTP_KEY_FILE": str(file)}):
        assert "HOLDFAST_SFTP_KEY_PASSWORD" in failure(opened(server, "/s", Access(wrong, home)), StorageDenied)
    gone = Access({"HOLDFAST_SFTP_KEY_FILE": "~/none"}, home)
    assert "~/none cannot be read" in failure(opened(server, "/s", gone), StorageDenied)
    (home / ".ssh" / "id_ed25519").write_bytes(file.read_bytes())  # a usual file that does not open is passed over
    assert "lets nobody in" in failure(opened(server, "/s", Access({}, home)), StorageDenied)


def test_an_agent_lends_its_keys(server, storage, tmp_path):
    home, sock = another_home(server, tmp_path), tmp_path / "agent"
    agent = subprocess.Popen([need("ssh-agent"), "-D", "-a", str(sock)], stdout=subprocess.DEVNULL)
    try:
        while not sock.exists():
            time.sleep(0.005)
        key = str(server.home / ".ssh" / "id_ed25519")
        env = os.environ | {"SSH_AUTH_SOCK": str(sock)}
        subprocess.run([need("ssh-add"), "-q", key], env=env, check=True)
        client = opened(server, tmp_path / "s", Access({"SSH_AUTH_SOCK": str(sock)}, home))
        assert client.get(CONFIG) == b"config"
        client.close()
    finally:
        agent.terminate()
        agent.wait()
    gone = Access({"SSH_AUTH_SOCK": str(sock)}, home)
    assert "lets nobody in" in failure(opened(server, "/s", gone), StorageDenied)


def test_an_alias_of_the_ssh_configuration_gives_machine_port_user_and_key(server, storage, tmp_path):
    home = another_home(server, tmp_path)
    (home / ".ssh" / "deploy").write_bytes((server.home / ".ssh" / "id_ed25519").read_bytes())
    config = home / ".ssh" / "config"
    config.write_text(
        f"Host nas\n  HostName 127.0.0.1\n  Port {server.port}\n  User {server.user}\n  IdentityFile ~/.ssh/deploy\n"
    )
    client = open_storage(f"sftp:nas:{tmp_path}/s", Access({}, home))
    assert client.get(CONFIG) == b"config"
    assert client.place == f"sftp://nas{tmp_path}/s"
    client.close()
    config.write_text("Host nas\n  Port many\n")
    broken = open_storage("sftp:nas:/s", Access({}, home))
    assert ".ssh/config" in failure(broken)


def test_a_machine_is_reached_through_another_that_is_known_as_well(server, storage, tmp_path, monkeypatch):
    home = another_home(server, tmp_path)
    monkeypatch.setenv("HOME", str(home))  # where asyncssh looks for what the machine on the way needs
    (home / ".ssh" / "id_ed25519").write_bytes((server.home / ".ssh" / "id_ed25519").read_bytes())
    (home / ".ssh" / "config").write_text(
        f"Host door\n  HostName 127.0.0.1\n  Port {server.port}\n"
        f"Host nas\n  HostName 127.0.0.1\n  Port {server.port}\n  ProxyJump door\n"
    )
    before = len(server.sessions())
    client = open_storage(f"sftp:{server.user}@nas:{tmp_path}/s", Access({}, home))
    assert client.get(CONFIG) == b"config"
    assert len(server.sessions()) >= before + 3  # at least one for the way and two for the storage
    client.close()


def test_a_password_opens_where_keys_do_not_and_a_wrong_one_does_not(tmp_path):
    key, options, access = rclone_access(tmp_path)
    with rclone.serving("sftp", tmp_path, *options) as port:
        known = tmp_path / "home" / ".ssh" / "known_hosts"
        known.parent.mkdir(parents=True)
        known.write_text(f"[127.0.0.1]:{port} {key.export_public_key().decode()}")
        address = f"sftp://somebody@127.0.0.1:{port}/"
        with pytest.raises(ObjectMissing):
            open_storage(address, access).stat(CONFIG)
        wrong = Access({"HOLDFAST_SFTP_PASSWORD": "wrong one"}, access.home)
        said = failure(SftpStorage(read_address(address), wrong), StorageDenied)
    assert "HOLDFAST_SFTP_PASSWORD" in said and "wrong one" not in said


# -- the folder ------------------------------------------------------------------------------------------------------


def test_the_folder_is_one_that_opens_on_its_own_machine_as_well(storage, tmp_path):
    storage.put(NAME, [DATA])
    local = LocalStorage(tmp_path / "s")
    assert local.get(NAME) == DATA
    assert [i.name for i in local.list("data")] == [NAME]
    assert (tmp_path / "s" / NAME[:4] / "..").is_dir() and (tmp_path / "s" / "data" / NAME[5:7] / NAME[5:]).is_file()
    assert (tmp_path / "s").stat().st_mode & 0o077 == 0


def test_a_folder_that_is_not_there_is_no_empty_repository(server, tmp_path):
    storage = opened(server, tmp_path / "none")
    calls: list[Callable[[], object]] = [
        lambda: storage.get(NAME),
        lambda: storage.stat(NAME),
        lambda: storage.put(NAME, [DATA]),
    ]
    calls += [lambda: storage.put(CONFIG, [b"x"]), lambda: storage.delete(NAME), lambda: list_of(storage, "data")]
    calls += [lambda: list_of(storage, "index"), storage.free_space]
    for call in calls:
        with pytest.raises(StorageUnavailable):
            call()
    with pytest.raises(ObjectMissing):
        storage.get(CONFIG)
    (tmp_path / "none").mkdir()  # where the disk should be mounted
    for call in (calls[2], calls[5], calls[6]):
        with pytest.raises(StorageUnavailable):
            call()
    assert not list((tmp_path / "none").iterdir())
    storage.close()


def test_folders_that_were_removed_are_made_again_by_a_put(storage, tmp_path):
    subprocess.run(["rm", "-rf", str(tmp_path / "s" / "data"), str(tmp_path / "s" / "tmp")], check=True)
    assert list_of(storage, "data") == []
    storage.put(NAME, [DATA])
    assert storage.get(NAME) == DATA


def test_nothing_else_that_lies_there_is_taken_for_an_object(storage, tmp_path):
    storage.put(NAME, [DATA])
    folder = tmp_path / "s" / "data" / NAME[5:7]
    other = NAME[5:7] + "0" * 62
    (folder / other).mkdir()
    (folder / ("1" + other[1:])).write_bytes(b"in another's subfolder") if NAME[5] != "1" else None
    (folder / (NAME[5:7] + "2" * 62)).symlink_to("/etc/passwd")
    (folder / b"not-\xff-utf8".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    (tmp_path / "s" / "data" / "file").write_bytes(b"x")
    assert [i.name for i in storage.list("data")] == [NAME]
    with pytest.raises(StorageError, match="not a file"):
        storage.stat(f"data/{other}")


def test_nothing_is_left_in_tmp_and_what_killed_writers_left_is_removed_after_a_day(server, storage, tmp_path):
    tmp = tmp_path / "s" / "tmp"
    old, young, strange = tmp / ("a" * 32), tmp / ("b" * 32), tmp / "notes"
    for path in (old, young, strange):
        path.write_bytes(b"x")
    for path in (old, strange):
        os.utime(path, (1, time.time() - 2 * 86400))
    again = opened(server, tmp_path / "s")
    again.put(NAME, [DATA])
    with pytest.raises(ObjectExists):
        again.put(NAME, [DATA])
    end = time.monotonic() + 10
    while {p.name for p in tmp.iterdir()} != {young.name, strange.name}:
        assert time.monotonic() < end, list(tmp.iterdir())
        time.sleep(0.01)
    again.close()


def test_an_object_is_flushed_before_and_after_it_has_its_name(storage, monkeypatch):
    happened = []
    for owner, name in [(asyncssh.SFTPClientFile, "fsync"), (asyncssh.SFTPClient, "link")]:
        real = getattr(owner, name)

        async def watched(self, *args, real=real, name=name):
            happened.append(name)
            return await real(self, *args)

        monkeypatch.setattr(owner, name, watched)
    storage.put(NAME, [DATA])
    assert happened == ["fsync", "link", "fsync"]
    storage.delete(NAME)
    assert happened[3:] == ["fsync"]


def test_where_no_hard_link_is_allowed_the_rename_that_never_replaces_is_used(tmp_path):
    with sshd.serving(tmp_path, "-P hardlink,fsync,statvfs,limits,posix-rename") as server:
        storage = opened(server, tmp_path / "s")
        storage.create()
        storage.put(NAME, [DATA, os.urandom(300_000)])
        start = threading.Barrier(4)

        def put(number: int) -> bool:
            client = opened(server, tmp_path / "s")
            start.wait()
            try:
                client.put(CONFIG, [b"%d" % number])
            except ObjectExists:
                return False
            finally:
                client.close()
            return True

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(put, range(4))) == 1
        assert storage.free_space() is None
        storage.close()


# -- power cuts ------------------------------------------------------------------------------------------------------


@pytest.mark.needs_root
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_what_was_put_and_what_was_deleted_stays_so_after_a_power_cut(server, machine, kind):
    disk = machine.disk(kind)
    storage = opened(server, disk.path / "s")
    storage.create()
    storage.put(CONFIG, [b"config"])
    disk.cut_power()
    disk.come_back()
    assert storage.get(CONFIG) == b"config"
    first, second = named(b"first"), named(b"second")
    storage.put(first, [b"first"])
    storage.put(second, [b"second"])
    disk.cut_power()
    disk.come_back()
    assert (storage.get(first), storage.get(second)) == (b"first", b"second")
    storage.delete(first)
    disk.cut_power()
    disk.come_back()
    assert [i.name for i in storage.list("data")] == [second]
    storage.close()


# -- what the disk says ----------------------------------------------------------------------------------------------


@pytest.mark.needs_root
def test_a_full_disk_is_named_and_nothing_is_left_of_what_did_not_fit(server, machine):
    disk = machine.tmpfs(size="3m")
    storage = opened(server, disk.path / "s")
    storage.create()
    storage.put(CONFIG, [b"x"])
    large = os.urandom(4 << 20)
    with pytest.raises(StorageFull):
        storage.put(named(large), [large])
    assert list_of(storage, "data") == []
    storage.put(NAME, [DATA])
    free = storage.free_space()
    assert free and 1 << 20 < free <= 3 << 20
    storage.close()


@pytest.mark.needs_root
def test_a_disk_without_inodes_is_full(server, machine):
    disk = machine.tmpfs(size="3m", nr_inodes=100)
    storage = opened(server, disk.path / "s")
    with pytest.raises(StorageFull):
        storage.create()
    storage.close()


@pytest.mark.needs_root
def test_a_disk_that_is_read_only_refuses(server, machine):
    disk = machine.tmpfs(size="9m")
    storage = opened(server, disk.path / "s")
    storage.create()
    storage.put(CONFIG, [b"x"])
    disk.set("ro")
    for call in (lambda: storage.put(NAME, [DATA]), lambda: storage.delete(CONFIG)):
        with pytest.raises(StorageDenied, match="read-only"):
            call()
    assert storage.get(CONFIG) == b"x"
    disk.set("rw")
    storage.close()


def test_a_server_that_allows_no_writing_refuses(tmp_path):
    LocalStorage(tmp_path / "s").create()
    LocalStorage(tmp_path / "s").put(CONFIG, [b"config"])
    with sshd.serving(tmp_path, "-R") as server:
        storage = opened(server, tmp_path / "s")
        for call in (lambda: storage.put(NAME, [DATA]), lambda: storage.delete(CONFIG)):
            with pytest.raises(StorageDenied):
                call()
        assert storage.get(CONFIG) == b"config"
        storage.close()


# -- connections that end --------------------------------------------------------------------------------------------


def kill_when(server: sshd.Sshd, sign: int, ready) -> None:
    while not ready():
        time.sleep(0.001)
    for pid in server.sessions():
        os.kill(pid, sign)


def test_a_connection_killed_in_the_middle_of_a_put_leaves_no_part_and_the_next_call_works(server, storage, tmp_path):
    data = os.urandom(1 << 20) * 30
    before = len(server.sessions())
    assert before
    tmp = tmp_path / "s" / "tmp"
    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_when, server, signal.SIGKILL, lambda: any(p.stat().st_size for p in tmp.iterdir()))
        with pytest.raises(StorageUnavailable):
            storage.put(named(data), [data])
        killing.result()
    assert list_of(storage, "data") == []
    with pytest.raises(ObjectMissing):
        storage.get(named(data))
    storage.put(named(data), [data])
    assert storage.get(named(data)) == data


def test_a_connection_that_ended_while_nothing_was_asked_is_opened_again(server, storage):
    kill_when(server, signal.SIGKILL, lambda: True)
    time.sleep(0.2)
    assert storage.get(CONFIG) == b"config"
    os.kill(server.sessions()[-1], signal.SIGKILL)  # the SFTP server alone; the SSH connection stands
    time.sleep(0.2)
    assert storage.get(CONFIG) == b"config"


def test_a_server_that_does_not_answer_in_time_is_unavailable_and_asked_anew(server, storage, tmp_path):
    hasty = opened(server, tmp_path / "s", patience_s=0.5)
    assert hasty.get(CONFIG) == b"config"
    stopped = server.sessions()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StorageUnavailable, match="does not answer"):
            hasty.get(CONFIG)
        assert hasty.get(CONFIG) == b"config"
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        hasty.close()


def test_a_peer_that_is_gone_without_a_word_is_noticed(server, storage, tmp_path):
    client = opened(server, tmp_path / "s", keepalive_s=0.6)
    assert client.get(CONFIG) == b"config"
    stopped = server.sessions()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StorageUnavailable):
            client.get(CONFIG)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        client.close()


def test_connections_are_as_many_as_are_allowed_and_no_more(server, tmp_path):
    before = len(server.sessions())
    storage = opened(server, tmp_path / "s", Access({}, server.home, connections=2))
    storage.create()
    one = len(server.sessions()) - before
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda _: storage.put(*_one()), range(48)))
    assert 0 < len(server.sessions()) - before <= 2 * one
    storage.close()
    end = time.monotonic() + 10
    while len(server.sessions()) > before:
        assert time.monotonic() < end, "close leaves connections behind"
        time.sleep(0.01)


def _one() -> tuple[str, list[bytes]]:
    name, data = an_object()
    return name, [data]


def test_a_storage_nobody_holds_any_more_closes_its_connections(server, tmp_path):
    before = len(server.sessions())
    opened(server, tmp_path / "s").create()
    end = time.monotonic() + 10
    while len(server.sessions()) > before:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_wrong_key_is_shown_once_for_all_threads_that_wait(server, tmp_path):
    home = another_home(server, tmp_path)
    sshd.write_key(home / ".ssh" / "id_ed25519")
    storage = opened(server, "/s", Access({}, home))
    before = server.log().count("Connection closed by authenticating user")
    start = threading.Barrier(8)

    def ask(_: int) -> None:
        start.wait()
        with pytest.raises(StorageDenied):
            storage.stat(CONFIG)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert server.log().count("Connection closed by authenticating user") - before < 4
    storage.close()


def test_a_child_of_a_fork_talks_on_connections_of_its_own(server, storage, tmp_path):
    storage.put(NAME, [DATA])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads, rightly
        pid = os.fork()
    if pid == 0:
        ok = False
        try:
            ok = storage.get(NAME) == DATA
        finally:
            os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert storage.get(NAME) == DATA


def test_a_process_that_ends_with_a_storage_open_ends_quietly_and_at_once(server, storage, tmp_path):
    program = (
        "import sys; from pathlib import Path; from holdfast.storage.select import Access, open_storage\n"
        "s = open_storage(sys.argv[1], Access({}, Path(sys.argv[2]))); print(s.get('config'))"
    )
    command = [sys.executable, "-X", "dev", "-c", program, server.address(tmp_path / "s"), str(server.home)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PYTHONASYNCIODEBUG": "0"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("b'config'\n", 0)
    assert "Traceback" not in done.stderr and "never retrieved" not in done.stderr


# -- a server that lies ----------------------------------------------------------------------------------------------


def test_a_server_that_gives_fewer_bytes_than_it_promised_is_not_believed(server, storage, monkeypatch):
    data = os.urandom(700_000)
    storage.put(named(data), [data])
    real = asyncssh.SFTPClientFile.read

    async def short(self, size=-1, offset=None):
        return (await real(self, size, offset))[: max(0, 650_000 - offset)]

    monkeypatch.setattr(asyncssh.SFTPClientFile, "read", short)
    with pytest.raises(StorageError, match="truncated"):
        storage.get(named(data))
    assert storage.get(named(data), 5, 100_000) == data[5:100_005]


def test_a_server_that_answers_in_small_pieces_is_asked_until_all_is_there(server, storage, monkeypatch):
    data = os.urandom(300_000)
    storage.put(named(data), [data])
    real = asyncssh.SFTPClientFile.read

    async def small(self, size=-1, offset=None):
        await asyncio.sleep(0)
        return await real(self, min(size, 10_007), offset)

    monkeypatch.setattr(asyncssh.SFTPClientFile, "read", small)
    assert storage.get(named(data)) == data
