"""Keystone v3 on SQLite, run by the Python that Keystone is installed for.

    PYTHON-OF-KEYSTONE openstack_keystone.py FOLDER PORT

Its database and keys are in FOLDER/state; where they are not, they are made: ``admin`` of the domain Default has the
password `adminpw`. Prints `ready` when it listens, and ends when its standard input does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

SETTINGS = """
[DEFAULT]
log_file = {folder}/keystone.log
[database]
connection = sqlite:///{folder}/state/keystone.db
[token]
provider = fernet
[fernet_tokens]
key_repository = {folder}/state/fernet
[credential]
key_repository = {folder}/state/credentials
[cache]
enabled = true
backend = dogpile.cache.memory
[identity]
password_hash_rounds = 4
"""


def make(folder: Path) -> None:
    """An empty database, its keys, and the administrator."""
    program = str(Path(sys.executable).with_name("keystone-manage"))
    for name in ("fernet", "credentials"):
        (folder / "state" / name).mkdir(parents=True)
    owner = ("--keystone-user", str(os.geteuid()), "--keystone-group", str(os.getegid()))
    steps = (("db_sync",), ("fernet_setup", *owner), ("credential_setup", *owner))
    for step in (*steps, ("bootstrap", "--bootstrap-password", "adminpw")):
        subprocess.run(
            [program, "--config-file", str(folder / "keystone.conf"), *step], check=True, stdout=subprocess.DEVNULL
        )


def end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


def serve(folder: Path, port: int) -> None:
    threading.Thread(target=end_with_input, daemon=True).start()
    os.environ["OS_KEYSTONE_CONFIG_FILES"] = str(folder / "keystone.conf")
    os.environ["OS_KEYSTONE_CONFIG_DIR"] = str(folder)
    sys.argv = sys.argv[:1]
    from keystone.server import wsgi  # type: ignore[import-not-found]
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, *args: object) -> None:
            """Nobody reads it."""

    server = make_server("127.0.0.1", port, wsgi.initialize_public_application(), threaded=True, request_handler=Quiet)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    where = Path(sys.argv[1])
    (where / "keystone.conf").write_text(SETTINGS.format(folder=where))
    if not (where / "state").exists():
        make(where)
    serve(where, int(sys.argv[2]))
