"""HTTP requests to web servers under the host policy, with bounds on redirects, size and time.

A request goes on to where a server redirects it, over http and https only, and each connection is checked; see `hosts`.
A proxy of the operator (`HTTPS_PROXY`) connects by itself, so that only host names that resolve here are checked.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from pipeline.errors import SceneError, TransientError
from pipeline.storage.http.hosts import CONNECT_TIMEOUT_S, ForbiddenHostError, open_connection, resolve_allowed

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session

MAX_REDIRECTS = 10
MAX_HEADERS_S = 120.0
"""Maximum time in which the headers of a response must arrive."""
MAX_BODY_S = 600.0
"""Maximum time in which the body of a response must arrive."""
CHUNK_BYTES = 2**18
REDIRECTS_WITH_BODY = (307, 308)
"""Status codes after which method and body of a request stay the same; after others it becomes GET."""


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """A request to a web server."""

    address: str
    hosts: tuple[str, ...] = ()
    """Hosts that may be private, see `HostRules`."""
    method: str = "GET"
    query: Mapping[str, Any] | None = None
    """Parameters after those of the address."""
    headers: Mapping[str, str] | None = None
    body: Mapping[str, Any] | None = None
    """JSON body; None: no body."""
    timeout_s: tuple[float, float] = (10.0, 60.0)
    """Timeouts: to connect, and between two chunks of the response."""

    def redirected(self, status: int, target: str) -> HttpRequest:
        """The request for the target of a redirect; headers go to no other server."""
        address = urljoin(self.address, target)
        if urlsplit(address).scheme.lower() not in ("http", "https"):
            raise SceneError(f"{self.address}: redirects to {address}; only http and https addresses are followed")
        same = urlsplit(address).netloc == urlsplit(self.address).netloc
        followed = replace(self, address=address, query=None, headers=self.headers if same else _range_only(self))
        if status in REDIRECTS_WITH_BODY or self.method == "HEAD":
            return followed
        return replace(followed, method="GET", body=None)


class WebClient:
    """Sends requests over kept-alive connections; not thread-safe."""

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, ...], Session] = {}

    @contextmanager
    def send(self, request: HttpRequest) -> Iterator[Response]:
        """The response to a request, after redirects; its body is read by `read_body`.

        Raises:
            SceneError: the address is no URL, or leads to where requests may not go.
            TransientError: the server cannot be reached.
        """
        from requests import RequestException
        from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema

        first = request.address
        try:
            for _ in range(MAX_REDIRECTS + 1):
                with contextlib.closing(self._send_once(request)) as response:
                    target = response.headers.get("location")
                    if not (response.is_redirect and target):
                        yield response
                        return
                    request = request.redirected(response.status_code, target)
        except ForbiddenHostError as error:
            raise ForbiddenHostError(f"{first}: {error}") from error
        except (InvalidURL, InvalidSchema, MissingSchema, UnicodeError) as error:
            raise SceneError(f"{first}: not an address of a web server: {error}; correct it") from error
        except (RequestException, OSError) as error:
            raise TransientError(
                f"{first}: cannot be reached: {_root_cause(error)}; check the address and the network, and run again"
            ) from None  # whose text may quote the secrets of the address
        raise SceneError(f"{first}: redirects more than {MAX_REDIRECTS} times; check the address")

    def close(self) -> None:
        """Close the connections."""
        for session in self._sessions.values():
            session.close()

    def _send_once(self, request: HttpRequest) -> Response:
        if request.hosts not in self._sessions:
            self._sessions[request.hosts] = _session(request.hosts)
        return self._sessions[request.hosts].request(
            request.method,
            request.address,
            params=request.query,
            headers=request.headers,
            json=request.body,
            timeout=request.timeout_s,
            allow_redirects=False,
            stream=True,
        )


def read_body(response: Response) -> Iterator[bytes]:
    """Yield the decoded body as it arrives; TransientError if it stops or takes longer than `MAX_BODY_S`."""
    from urllib3.exceptions import HTTPError

    start = time.monotonic()
    try:
        # read1 returns what has arrived, so that a server which sends a byte a minute meets the bound.
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
            yield chunk
            if time.monotonic() - start > MAX_BODY_S:
                raise TransientError(f"{response.url}: did not arrive within {MAX_BODY_S:g} s; run again later")
    except (HTTPError, OSError) as error:
        raise TransientError(
            f"{response.url}: cannot be fetched: {_root_cause(error)}; check the network and run again"
        ) from error


def _root_cause(error: BaseException) -> str:
    """The innermost error, without the names of urllib3's pools and connections."""
    inner: BaseException | None = error
    while inner is not None:
        error = inner
        nested = (getattr(error, "reason", None), error.__cause__, *error.args)
        inner = next((each for each in nested if isinstance(each, BaseException)), None)
    return str(getattr(error, "strerror", None) or error)


def _range_only(request: HttpRequest) -> dict[str, str]:
    """The headers of a request that another server may see."""
    public = ("range", "user-agent", "accept", "accept-encoding", "content-type")
    return {name: text for name, text in (request.headers or {}).items() if name.lower() in public}


def _session(hosts: tuple[str, ...]) -> Session:
    """A session whose connections are opened under the host policy."""
    from requests import Session
    from requests.adapters import HTTPAdapter
    from requests.utils import select_proxy

    class PolicyAdapter(HTTPAdapter):
        """Opens connections by `open_connection`, and checks names before a proxy gets them."""

        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = _pool_classes(hosts)

        def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
            parts = urlsplit(request.url or "")
            if select_proxy(request.url or "", kwargs.get("proxies")):
                with contextlib.suppress(OSError):  # A name that only the proxy resolves.
                    resolve_allowed(str(parts.hostname), parts.port or 443, hosts)
            return super().send(request, *args, **kwargs)

    class PolicySession(Session):
        """Leaves redirects to its caller; requests would read their bodies to the end, however long they are."""

        def get_redirect_target(self, resp: Response) -> None:
            return None

    session = PolicySession()
    for scheme in ("http://", "https://"):
        session.mount(scheme, PolicyAdapter())
    return session


def _pool_classes(hosts: tuple[str, ...]) -> dict[str, Any]:
    """urllib3's connection pools by scheme, whose connections go only to allowed hosts."""
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.exceptions import NewConnectionError

    class PolicyConnection(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            timeout_s = self.timeout if isinstance(self.timeout, int | float) else CONNECT_TIMEOUT_S
            try:
                return open_connection(self.host, self.port or 0, hosts, timeout_s)
            except OSError as error:
                raise NewConnectionError(self, str(error)) from error

        def getresponse(self) -> Any:
            # A timeout is between two bytes; headers that trickle in would never end.
            late, connection = threading.Event(), self.sock

            def stop() -> None:
                late.set()
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

            watchdog = threading.Timer(MAX_HEADERS_S, stop)
            watchdog.daemon = True
            watchdog.start()
            try:
                response = super().getresponse()
            finally:
                watchdog.cancel()
            if late.is_set():
                response.close()
                raise TimeoutError(f"the headers of its response did not arrive within {MAX_HEADERS_S:g} s")
            return response

    class PolicyTlsConnection(PolicyConnection, HTTPSConnection):
        pass

    class PolicyPool(HTTPConnectionPool):
        ConnectionCls = PolicyConnection

    class PolicyTlsPool(HTTPSConnectionPool):
        ConnectionCls = PolicyTlsConnection

    return {"http": PolicyPool, "https": PolicyTlsPool}
