"""A real nginx before a real server, with the configuration of ``deploy/nginx.conf``: other ports and paths, no TLS."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.components import need

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx.conf"
_AROUND = """
daemon off;
master_process off;
error_log {folder}/error.log;
pid {folder}/pid;
events {{}}
http {{
    include /etc/nginx/mime.types;
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{sites}
}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _sites(port: int, server: int, shares: Path, folder: Path) -> str:
    """The configuration, changed where it says that it must be, and without TLS."""
    text = CONFIGURATION.read_text()
    text = re.sub(r"server \{\n    listen 80;.*?\n\}\n", "", text, count=1, flags=re.DOTALL)
    changes = {
        "server 127.0.0.1:8000;": f"server 127.0.0.1:{server};", "listen 443 ssl;": f"listen 127.0.0.1:{port};",
        "alias /srv/holdfast-shares/;": f"alias {shares}/;", "/var/log/nginx/holdfast.log": f"{folder}/access.log",
    }  # fmt: skip
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return "\n".join(line for line in text.splitlines() if not line.strip().startswith("ssl_"))


@contextlib.contextmanager
def nginx(port: int, server: int, shares: Path) -> Iterator[Path]:
    """Its folder, with ``access.log`` and ``error.log``, while it listens on that port for a server on another one."""
    program = need("nginx")
    folder = Path(tempfile.mkdtemp(prefix="holdfast-nginx-"))
    user = ""
    if os.geteuid() == 0:  # as which it would change to somebody who may not read what tests write
        user = f"user {pwd.getpwuid(0).pw_name} {grp.getgrgid(0).gr_name};\n"
    (folder / "nginx.conf").write_text(user + _AROUND.format(folder=folder, sites=_sites(port, server, shares, folder)))
    command = [program, "-c", f"{folder}/nginx.conf", "-p", str(folder), "-e", f"{folder}/error.log"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        _wait_until_it_listens(port, process, folder)
        yield folder
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_it_listens(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert process.poll() is None and time.monotonic() < end, (folder / "error.log").read_text()
        time.sleep(0.05)
