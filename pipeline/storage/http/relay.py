"""HTTP proxy on loopback that applies the host policy to GDAL's requests, in a process of its own.

GDAL follows redirects by itself, even to FTP, and has no option against it; a proxy sees each connection. It cannot be
a thread: rasterio holds Python's lock while GDAL opens a file. The policy of a request is in the user name of its proxy
credentials, so that the proxy keeps no state; the password is known only to the process that started it. The proxy ends
when that process does, since its standard input ends then.
"""

from __future__ import annotations

import atexit
import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pipeline.errors import SceneError, TransientError
from pipeline.storage.http.hosts import open_connection

MAX_HEAD_BYTES = 2**16
"""Maximum size of the headers of a request."""
FORBIDDEN_STATUS = 451
"""Status of the answer to a request that the policy refuses; servers hardly use it."""
IDLE_S = 300.0
"""Time without a byte after which a connection is closed."""
BUFFER_BYTES = 2**18


_NO_HOST = "none.invalid"


def gdal_proxy_options(address: str, hosts: Sequence[str]) -> dict[str, str]:
    """GDAL's options for requests to `address` that may reach public hosts and `hosts`, also after redirects.

    A proxy of the operator that connects to the address is named for all of them: what it may reach is the operator's
    decision, but libcurl would go past it to a redirect of another scheme, and ignores `HTTP_PROXY` in upper case.
    """
    _ignore_no_proxy()
    host = urlsplit(address).hostname or ""
    scheme = urlsplit(address).scheme.lower()
    own = os.environ.get("GDAL_HTTPS_PROXY") if scheme == "https" else None
    own = own or os.environ.get("GDAL_HTTP_PROXY")
    if own is None and not proxy_bypass(host):
        own = getproxies().get(scheme) or getproxies().get("all")
    return {"GDAL_HTTP_PROXY": own, "GDAL_HTTPS_PROXY": own} if own else _proxy_options(hosts)


@lru_cache(maxsize=1)
def _ignore_no_proxy() -> None:
    """Keep libcurl from connecting past every proxy to the hosts of NO_PROXY; Python's `os.environ` is unchanged.

    A child process inherits the change, and undoes it here.
    """
    if os.environ.get("no_proxy") == _NO_HOST:
        del os.environ["no_proxy"]
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    if hosts:
        os.putenv("NO_PROXY", hosts)
        os.putenv("no_proxy", _NO_HOST)


def _proxy_options(hosts: Sequence[str]) -> dict[str, str]:
    """GDAL's options for requests that may reach public hosts and `hosts`; starts the proxy of this process.

    libcurl reuses tunnels of one proxy host; a host name for each policy keeps them apart.
    """
    proxy = _proxy(os.getpid())
    policy = base64.urlsafe_b64encode(json.dumps([*hosts]).encode()).decode()
    name = hashlib.sha256(policy.encode()).hexdigest()[:16]
    address = f"http://p{name}.localhost:{proxy.port}"
    return {
        "GDAL_HTTP_PROXY": address,
        "GDAL_HTTPS_PROXY": address,
        "GDAL_HTTP_PROXYUSERPWD": f"{policy}:{proxy.password}",
        "GDAL_PROXY_AUTH": "BASIC",
    }


@dataclass(frozen=True)
class _Proxy:
    """The proxy that this process started."""

    process: subprocess.Popen[str]
    port: int
    password: str


@lru_cache(maxsize=1)
def _proxy(pid: int) -> _Proxy:
    """Start the proxy of the process `pid`; a forked process starts its own."""
    password = secrets.token_urlsafe(32)
    # The module search path of this process, but never its working directory.
    paths = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{password}\n")
    process.stdin.flush()
    port = process.stdout.readline().strip()
    if not port:
        raise TransientError("the proxy for requests of GDAL could not be started; run again")
    atexit.register(_end, process, os.getpid())
    return _Proxy(process, int(port), password)


def _end(process: subprocess.Popen[str], pid: int) -> None:
    """End a proxy with the process `pid` that started it, not with a fork of that."""
    if os.getpid() == pid:
        with process:  # closes its standard input, and waits
            pass


def main() -> None:
    """Serve on a free port, which is printed, until standard input ends; its first line is the password."""
    password = sys.stdin.readline().strip()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        sys.stdout.write(f"{server.getsockname()[1]}\n")
        sys.stdout.flush()
        threading.Thread(target=_serve, args=(server, password), daemon=True).start()
        sys.stdin.read()


def _serve(server: socket.socket, password: str) -> None:
    while True:
        client, _ = server.accept()
        threading.Thread(target=_handle, args=(client, password), daemon=True).start()


def _handle(client: socket.socket, password: str) -> None:
    """Serve one connection: a tunnel, or plain requests one after another."""
    with contextlib.suppress(OSError, EOFError), client:
        client.settimeout(IDLE_S)
        _Connection(client, password).run()


@dataclass(frozen=True)
class _Head:
    """Request line and headers of a request."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, content: bytes) -> _Head:
        """Parse a head without its last empty line; ValueError if it is not one."""
        first, *lines = content.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        pairs = [line.partition(":") for line in lines]
        return cls(method, target, tuple((name.strip(), text.strip()) for name, _, text in pairs))

    @property
    def credentials(self) -> str:
        return next((text for name, text in self.headers if name.lower() == "proxy-authorization"), "")

    def for_server(self, host: str, path: str) -> bytes:
        """The request as its server gets it."""
        kept = [(name, text) for name, text in self.headers if not name.lower().startswith(("proxy-", "host"))]
        lines = [f"{self.method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {text}" for name, text in kept)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class _RefusedError(Exception):
    """A request that is answered by the proxy; the message is status code and reason."""


class _Connection:
    """A connection of GDAL to the proxy, and the one to the server that it asks for."""

    def __init__(self, client: socket.socket, password: str) -> None:
        self._client, self._password = client, password
        self._server: socket.socket | None = None
        self._of: tuple[str, int, object] | None = None
        """Host, port and policy of the server's connection."""
        self._unread = b""

    def run(self) -> None:
        """Serve until either side closes."""
        try:
            while True:
                head = _Head.parse(self._read_head())
                hosts = self._policy(head.credentials)
                if head.method == "CONNECT":
                    host, _, port = head.target.rpartition(":")
                    self._connect(host.strip("[]"), int(port), hosts)
                    self._client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                    self._pump(tunnel=True)
                    return
                self._forward(head, hosts)
                self._pump(tunnel=False)
        except _RefusedError as error:
            self._answer(str(error))
        except ValueError:
            self._answer("400 Bad Request")
        finally:
            if self._server is not None:
                self._server.close()

    def _answer(self, status: str) -> None:
        self._client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode("latin-1"))

    def _read_head(self) -> bytes:
        while b"\r\n\r\n" not in self._unread:
            if len(self._unread) > MAX_HEAD_BYTES:
                raise _RefusedError("431 Request Header Fields Too Large")
            chunk = self._client.recv(BUFFER_BYTES)
            if not chunk:
                raise EOFError
            self._unread += chunk
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        return head

    def _policy(self, credentials: str) -> tuple[str, ...]:
        """The hosts of the credentials; refuses others than this process's parent."""
        try:
            user, _, password = base64.b64decode(credentials.partition(" ")[2]).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            user = password = ""
        if not hmac.compare_digest(password.encode(), self._password.encode()):
            raise _RefusedError('407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="relay"')
        return tuple(json.loads(base64.urlsafe_b64decode(user)))

    def _forward(self, head: _Head, hosts: tuple[str, ...]) -> None:
        """Send a plain request to its server, over the last connection if that is the same one."""
        url = urlsplit(head.target)
        if url.scheme.lower() != "http" or head.method not in ("GET", "HEAD") or not url.hostname:
            raise _RefusedError(f"{FORBIDDEN_STATUS} Only http and https addresses are read")
        if self._server is None or self._of != (url.hostname, url.port or 80, hosts):
            self._connect(url.hostname, url.port or 80, hosts)
        assert self._server is not None
        path = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
        self._server.sendall(head.for_server(url.netloc.rpartition("@")[2], path))

    def _connect(self, host: str, port: int, hosts: tuple[str, ...]) -> None:
        if self._server is not None:
            self._server.close()
        try:
            self._server, self._of = open_connection(host, port, hosts), (host, port, hosts)
        except SceneError as error:
            raise _RefusedError(f"{FORBIDDEN_STATUS} Not a public address") from error
        except OSError as error:
            raise _RefusedError("502 Cannot be reached") from error
        self._server.settimeout(IDLE_S)

    def _pump(self, *, tunnel: bool) -> None:
        """Copy bytes until a side closes; of plain requests until the client sends the next one."""
        assert self._server is not None
        buffer = memoryview(bytearray(BUFFER_BYTES))
        with selectors.DefaultSelector() as selector:
            selector.register(self._client, selectors.EVENT_READ, self._server)
            selector.register(self._server, selectors.EVENT_READ, self._client)
            while ready := selector.select(IDLE_S):
                for key, _ in ready:
                    if key.fileobj is self._client and not tunnel:
                        return
                    count = key.fileobj.recv_into(buffer)  # type: ignore[union-attr]
                    if not count:
                        raise EOFError
                    key.data.sendall(buffer[:count])
        raise EOFError


if __name__ == "__main__":
    main()
