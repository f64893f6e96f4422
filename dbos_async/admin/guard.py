"""Who may ask: the name that the API was called by, the page that calls it, and the token.

A page of another site in the browser of somebody on this machine is the one attacker that reaches
the loopback address. It can come under a name of its own that resolves to us, so names are on a
list; or it can send what needs no leave of ours, and then the browser says so in `Sec-Fetch-Site`
and `Origin`. Neither can know the token.

Whoever guesses tokens has ten wrong ones a minute and address. After that nothing is looked at for
the rest of the minute, the right token neither.
"""

import hashlib
import hmac
import ipaddress
import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request

from dbos_async._log import log

OWN_NAMES: Final = ("localhost", "127.0.0.1", "::1")
ANY: Final = "*"
HOST: Final = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{0,5})?")
"""A Host header in small letters. Source: RFC 9110, section 7.2, and RFC 3986; what no name of a
machine has is left out."""
SINGLE: Final = ("host", "authorization", "origin", "sec-fetch-site")
"""Headers that are there once, or somebody else may go by another one of them than we do."""
BROWSERS_OWN: Final = "sec-fetch-"
"""How headers begin that browsers send, and no page can leave out."""
GUESSES: Final = 10
"""Wrong tokens that an address has within `WINDOW`."""
WINDOW: Final = 60.0
"""Seconds."""
MOST_ADDRESSES: Final = 1_024
"""Addresses that are remembered; beyond, the one that guessed longest ago is forgotten."""
NETWORK_BITS: Final = 64
"""Of an IPv6 address: what one subscriber has, and changes within at will."""


class Guard:
    """Lets requests through, or raises the answer that they get."""

    def __init__(self, token: str | None, hosts: Iterable[str]) -> None:
        self._digest = None if token is None else digest_of(token.encode())
        self._hosts = frozenset(name_of(host) for host in (*OWN_NAMES, *hosts))
        self._throttle = Throttle()

    def check(self, request: Request, *, is_link: bool = False) -> None:
        """Let a request through that may do anything.

        Args:
            request: who asks, for what.
            is_link: whether a link to it would change something: it is a GET that does.

        Raises:
            HTTPException: 400, a header twice that counts once; 403, a foreign host or page, or a
                browser that follows such a link; 401, no token or a wrong one; 429, too many wrong
                ones.
        """
        for name in SINGLE:
            if len(request.headers.getlist(name)) > 1:
                raise HTTPException(400, f"there is more than one {name} header")
        self._check_host(request)
        self._check_page(request)
        if self._digest is not None:
            self._check_token(request, self._digest)
        elif is_link and any(name.startswith(BROWSERS_OWN) for name in request.headers):
            raise HTTPException(403, "no link in a browser does this without a token: POST it")

    def _check_host(self, request: Request) -> None:
        given = request.headers.get("host", "")
        host = HOST.fullmatch(given.lower())
        if host is not None:
            name = host["address"] or host["name"].removesuffix(".")
            if ANY in self._hosts or name in self._hosts or name == address_reached(request):
                return
        raise HTTPException(
            403, f"the host {given!r} is not one of the admin API's names: see admin_allowed_hosts"
        )

    def _check_page(self, request: Request) -> None:
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise HTTPException(403, "pages of other sites may not call the admin API")
        origin = request.headers.get("origin")
        if origin is not None and netloc_of(origin) != request.headers.get("host", "").lower():
            raise HTTPException(403, "pages of other sites may not call the admin API")

    def _check_token(self, request: Request, digest: bytes) -> None:
        address = request.client.host if request.client is not None else ""
        seconds = self._throttle.blocked_for(address)
        if seconds > 0:
            raise HTTPException(
                429, "too many wrong tokens from this address", {"retry-after": f"{seconds:.0f}"}
            )
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise HTTPException(
                401, "show the token: Authorization: Bearer …", {"www-authenticate": "Bearer"}
            )
        if not hmac.compare_digest(digest_of(given.strip().encode("latin-1", "replace")), digest):
            self._throttle.failed(address)
            raise HTTPException(
                401, "the token is wrong", {"www-authenticate": 'Bearer error="invalid_token"'}
            )


class Throttle:
    """Remembers who guessed, and when."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._failures: dict[str, deque[float]] = {}

    def blocked_for(self, address: str) -> float:
        """Seconds until this address may show a token again."""
        failures = self._failures.get(network_of(address))
        if failures is None or len(failures) < GUESSES:
            return 0.0
        return max(0.0, failures[0] + WINDOW - self._now())

    def failed(self, address: str) -> None:
        """This address showed a wrong token."""
        network = network_of(address)
        failures = self._failures.pop(network, None) or deque(maxlen=GUESSES)
        failures.append(self._now())
        self._failures[network] = failures
        if len(self._failures) > MOST_ADDRESSES:
            del self._failures[next(iter(self._failures))]
        if self.blocked_for(address) > 0:
            log.warning("somebody guesses tokens of the admin API", address=address)


def digest_of(token: bytes) -> bytes:
    """What is kept of a token, and compared: of one length whatever was given."""
    return hashlib.sha256(token).digest()


def name_of(host: str) -> str:
    """A name that is allowed, as a Host header has it: no port, brackets or dot at the end."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return (host.partition(":")[0] if host.count(":") == 1 else host).removesuffix(".")


def address_reached(request: Request) -> str | None:
    """The address of ours that a request came to, if it is known: no page can resolve to a number.

    Some servers take it from the Host header, so a name is no address.
    """
    host, _ = request.scope.get("server") or ("", None)
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


def netloc_of(origin: str) -> str:
    """Host and port of an Origin; nothing for one that cannot be read, or is `null`."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def network_of(address: str) -> str:
    """What counts as one address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((int(parsed), NETWORK_BITS), strict=False))
