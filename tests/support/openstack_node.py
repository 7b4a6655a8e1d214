"""Servers of OpenStack Swift in one process, run by the Python that Swift is installed for.

    PYTHON-OF-SWIFT openstack_node.py FOLDER NAME=PORT ...

``FOLDER/NAME.conf`` says what each server is; ``openstack.py`` writes that. Prints `ready` when all of them listen, and
ends when its standard input does: whoever started it is gone then.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Kept:
    """What Swift keeps in memcached, in this process: values with the moment at which each is forgotten."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Any, float]] = {}

    def get(self, key: str, **options: Any) -> Any:
        value, until = self._held.get(key, (None, 0))
        return value if not until or until > time.time() else None

    def set(self, key: str, value: Any, time: float = 0, **options: Any) -> None:
        self._held[key] = value, time and now() + time

    def incr(self, key: str, delta: int = 1, **options: Any) -> int:
        self._held[key] = int(self.get(key) or 0) + int(delta), 0
        return int(self._held[key][0])

    def delete(self, key: str, **options: Any) -> None:
        self._held.pop(key, None)

    def forget_tokens(self) -> None:
        for key in [k for k in self._held if "/token/" in k or k.startswith("tokens/")]:
            del self._held[key]


def now() -> float:
    return time.time()


def no_memcached(global_settings: Any, **settings: Any) -> Callable[[Any], Any]:
    """A paste filter: the above in its place. GET /forget-tokens makes every token unknown."""
    kept = Kept()

    def around(app: Any) -> Any:
        def handle(environment: dict[str, Any], start: Any) -> Any:
            environment["swift.cache"] = kept
            if environment["PATH_INFO"] != "/forget-tokens":
                return app(environment, start)
            kept.forget_tokens()
            start("204 No Content", [])
            return [b""]

        return handle

    return around


def make_rings(folder: Path, account: int, container: int, objects: int) -> None:
    """One replica on one device, for each of the servers at these ports."""
    from swift.common.ring import RingBuilder  # type: ignore[import-not-found]

    for name, port in {"account": account, "container": container, "object": objects, "object-1": objects}.items():
        builder = RingBuilder(4, 1, 0)
        device = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "disk", "weight": 1.0, "meta": ""}
        builder.add_dev(device | {"replication_ip": "127.0.0.1", "replication_port": port})
        builder.rebalance()
        builder.get_ring().save(str(folder / f"{name}.ring.gz"))


def end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


def serve(folder: Path, ports: dict[str, int]) -> None:
    """These servers, until the process is ended."""
    threading.Thread(target=end_with_input, daemon=True).start()  # a real thread: eventlet comes after it
    import eventlet  # type: ignore[import-not-found]
    from eventlet import wsgi

    eventlet.monkey_patch()
    from swift.common import utils  # type: ignore[import-not-found]
    from swift.common.storage_policy import reload_storage_policies  # type: ignore[import-not-found]
    from swift.common.wsgi import SwiftHttpProtocol, loadapp  # type: ignore[import-not-found]

    utils.set_swift_dir(str(folder))
    reload_storage_policies()
    if not (folder / "object.ring.gz").exists():
        make_rings(folder, ports["account"], ports["container"], int((folder / "objects-port").read_text()))
    running = []
    for name, port in ports.items():
        app = loadapp(str(folder / f"{name}.conf"), global_conf={"log_name": name})
        listener = eventlet.listen(("127.0.0.1", port), backlog=512)
        log = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
        pool = eventlet.GreenPool(256)
        options = {"protocol": SwiftHttpProtocol, "log_output": False, "custom_pool": pool}
        running.append(eventlet.spawn(wsgi.server, listener, app, log, **options))
    print("ready", flush=True)
    for one in running:
        one.wait()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    serve(Path(sys.argv[1]), {name: int(port) for name, _, port in (a.partition("=") for a in sys.argv[2:])})
