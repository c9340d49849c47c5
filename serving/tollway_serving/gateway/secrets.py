"""The secrets folder: the internal token, the database URL, providers' keys. Read by `upstream` and `app`.

A file is looked at again at most once a second and read again only if it changed, so that a rotated secret counts
without a restart and a request costs no system call. Values never leave this object except to the one who asks.
"""

import time
from pathlib import Path

_LOOK_AGAIN_S = 1.0
_MAX_BYTES = 64 * 1024


class Secrets:
    """`folder` None: there are no secrets (tests, a gateway with remote models only)."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._cache: dict[str, tuple[float, tuple[int, int, int] | None, str | None]] = {}

    def internal_token(self) -> str | None:
        """The current internal token: the first line of its file."""
        text = self._read("internal-token")
        return text.split("\n", 1)[0].strip() or None if text else None

    def database_url(self) -> str | None:
        text = self._read("database-url")
        return text.strip() or None if text else None

    def provider(self, name: str) -> str | None:
        """A remote provider's key by the name in the model's entry; None if it is missing."""
        if "/" in name or name.startswith("."):
            return None
        text = self._read(f"providers/{name}")
        return text.strip() or None if text else None

    def _read(self, name: str) -> str | None:
        if self._folder is None:
            return None
        now = time.monotonic()
        known = self._cache.get(name)
        if known is not None and now - known[0] < _LOOK_AGAIN_S:
            return known[2]
        path = self._folder / name
        try:
            status = path.stat()
            mark = (status.st_mtime_ns, status.st_ino, status.st_size)
            if known is not None and known[1] == mark:
                text = known[2]
            else:
                with path.open(encoding="utf-8") as file:
                    text = file.read(_MAX_BYTES)
        except (OSError, UnicodeDecodeError):
            mark, text = None, None
        self._cache[name] = (now, mark, text)
        return text
