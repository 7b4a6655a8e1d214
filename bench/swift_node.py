"""One OpenStack Swift node in one process, for the benchmark: account, container, object and proxy server on loopback.

    PYTHON-OF-SWIFT swift_node.py FOLDER PORT

Run by the Python that Swift is installed for (bench.server does both), with ports PORT to PORT + 3. One replica, one
device in FOLDER; `testing` is the key of the user `test:tester`. Prints `ready` when it listens.
"""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

SERVERS = ("account", "container", "object")
PIPELINE = "catch_errors gatekeeper healthcheck cache tempauth proxy-server"
FILTERS = {"catch_errors": "catch_errors", "gatekeeper": "gatekeeper", "healthcheck": "healthcheck"}


def configure(folder: Path, port: int) -> None:
    """Settings and rings below the folder."""
    (folder / "node" / "disk").mkdir(parents=True, exist_ok=True)
    common = f"swift_dir = {folder}\nbind_ip = 127.0.0.1\nworkers = 0\nuser = {getpass.getuser()}\n"
    policy = "[storage-policy:0]\nname = only\ndefault = yes\n"
    (folder / "swift.conf").write_text(
        f"[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n{policy}"
        "[swift-constraints]\nmax_file_size = 5368709122\n"
    )
    for number, name in enumerate(SERVERS, 1):
        (folder / f"{name}.conf").write_text(
            f"[DEFAULT]\n{common}bind_port = {port + number}\ndevices = {folder}/node\nmount_check = false\n"
            f"disable_fallocate = true\n[pipeline:main]\npipeline = {name}-server\n"
            f"[app:{name}-server]\nuse = egg:swift#{name}\n"
        )
        ring = str(Path(sys.executable).with_name("swift-ring-builder"))
        device = f"r1z1-127.0.0.1:{port + number}/disk"
        for step in (("create", "4", "1", "0"), ("add", device, "1"), ("rebalance",)):
            subprocess.run([ring, str(folder / f"{name}.builder"), *step], check=False, stdout=subprocess.DEVNULL)
    filters = "".join(f"[filter:{name}]\nuse = egg:swift#{egg}\n" for name, egg in FILTERS.items())
    (folder / "proxy.conf").write_text(
        f"[DEFAULT]\n{common}bind_port = {port}\n[pipeline:main]\npipeline = {PIPELINE}\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\nallow_account_management = true\naccount_autocreate = true\n"
        "[filter:tempauth]\nuse = egg:swift#tempauth\nuser_test_tester = testing .admin\n"
        f"storage_url_scheme = http\n[filter:cache]\npaste.filter_factory = swift_node:no_memcache\n{filters}"
    )


class Kept:
    """What Swift keeps in memcache, in this process."""

    def __init__(self) -> None:
        self._held: dict[object, object] = {}

    def get(self, key, **options):  # type: ignore[no-untyped-def]
        return self._held.get(key)

    def set(self, key, value, **options):  # type: ignore[no-untyped-def]
        self._held[key] = value

    def incr(self, key, delta=1, **options):  # type: ignore[no-untyped-def]
        self._held[key] = int(self._held.get(key) or 0) + int(delta)  # type: ignore[call-overload]
        return self._held[key]

    def delete(self, key, **options):  # type: ignore[no-untyped-def]
        self._held.pop(key, None)


def no_memcache(global_settings, **settings):  # type: ignore[no-untyped-def]
    """A paste filter: tokens and container listings are kept here instead of in a memcached."""
    kept = Kept()

    def around(app):  # type: ignore[no-untyped-def]
        def handle(environment, start):  # type: ignore[no-untyped-def]
            environment["swift.cache"] = kept
            return app(environment, start)

        return handle

    return around


def serve(folder: Path, port: int) -> None:
    """All four servers, until the process is ended."""
    import eventlet  # type: ignore[import-not-found]
    from eventlet import wsgi

    eventlet.monkey_patch()
    from swift.common import utils  # type: ignore[import-not-found]
    from swift.common.storage_policy import reload_storage_policies  # type: ignore[import-not-found]
    from swift.common.wsgi import SwiftHttpProtocol, loadapp  # type: ignore[import-not-found]

    utils.set_swift_dir(str(folder))
    reload_storage_policies()
    running = []
    for number, name in enumerate((*SERVERS, "proxy"), 1):
        app = loadapp(str(folder / f"{name}.conf"), global_conf={"log_name": name})
        listener = eventlet.listen(("127.0.0.1", port + (number if name != "proxy" else 0)), backlog=512)
        log = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
        pool = eventlet.GreenPool(256)
        running.append(
            eventlet.spawn(
                wsgi.server, listener, app, log, protocol=SwiftHttpProtocol, log_output=False, custom_pool=pool
            )
        )
    print("ready", flush=True)
    for one in running:
        one.wait()


if __name__ == "__main__":
    where, first = Path(sys.argv[1]).absolute(), int(sys.argv[2])
    sys.path.insert(0, str(Path(__file__).parent))
    configure(where, first)
    serve(where, first)
