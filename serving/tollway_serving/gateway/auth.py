"""Who is calling: the bearer key, and the per-address net in front of it. Called by `app` before a body is read."""

import time
from hashlib import sha256

from tollway_serving.contract.catalogue import Endpoint
from tollway_serving.gateway.catalogue import Access, Catalogue
from tollway_serving.gateway.errors import ApiError

_MAX_ADDRESSES = 100_000
_LOOPBACK = ("127.", "::1", "::ffff:127.")


def authenticate(catalogue: Catalogue, authorization: bytes | None, endpoint: Endpoint | None) -> Access:
    """The caller by its Authorization header, if it may use `endpoint` (None: a free route, open to every key)."""
    if not authorization:
        raise ApiError(
            "invalid_api_key",
            "You didn't provide an API key. Send it in an Authorization header: 'Authorization: Bearer YOUR_KEY'.",
        )
    scheme, _, secret = authorization.partition(b" ")
    secret = secret.strip()
    access = catalogue.access(sha256(secret).hexdigest()) if scheme.lower() == b"bearer" and secret else None
    if access is None or access.key.state != "Active":
        raise ApiError("invalid_api_key", "Incorrect API key provided.")
    expires = access.key.expires_at
    if expires is not None and expires <= time.time():
        raise ApiError("expired_api_key", "This API key has expired.")
    if endpoint is not None and not access.allows(endpoint):
        raise ApiError("endpoint_not_enabled", "This endpoint is not part of your plan.")
    return access


class AddressNet:
    """Requests per client address in fixed windows, in this replica's memory: a safety net, not a quota.

    Loopback is let through where no header names the client: it is a proxy on this machine or its own user.
    """

    def __init__(self, header: str | None, limit: int, window_s: int) -> None:
        self.header = header.lower().encode("ascii") if header else None
        self._limit = limit
        self._window_s = window_s
        self._counts: dict[str, int] = {}
        self._ends = 0.0

    def admit(self, socket_address: str | None, header_value: bytes | None) -> None:
        """Counts one request; ApiError rate_limit_exceeded above the limit."""
        if self.header is not None:
            value = (header_value or b"").rsplit(b",", 1)[-1].strip()
            address = value.decode("latin-1")[:64] or socket_address
        else:
            address = socket_address
            if address is not None and address.startswith(_LOOPBACK):
                return
        if not address:
            return
        now = time.monotonic()
        if now >= self._ends:
            self._counts.clear()
            self._ends = now + self._window_s
        count = self._counts.get(address, 0) + 1
        if count > self._limit:
            raise ApiError(
                "rate_limit_exceeded",
                "Too many requests from your address. Please slow down.",
                retry_after_s=max(1, int(self._ends - now) + 1),
            )
        if len(self._counts) < _MAX_ADDRESSES or address in self._counts:
            self._counts[address] = count
