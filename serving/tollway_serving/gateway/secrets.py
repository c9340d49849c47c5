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

    def __init__(self, folder: Path | None, providers: Path | None = None) -> None:
        self._folder = folder
        self._providers = providers or (folder / "providers" if folder is not None else None)
        self._cache: dict[tuple[Path, str], tuple[float, tuple[int, int, int] | None, str | None]] = {}

    def internal_token(self) -> str | None:
        """The current internal token: the first line of its file."""
        text = self._read("internal-token", self._folder)
        return text.split("\n", 1)[0].strip() or None if text else None

    def database_url(self) -> str | None:
        text = self._read("database-url", self._folder)
        return text.strip() or None if text else None

    def provider(self, name: str) -> str | None:
        """A remote provider's key by the name in the model's entry; None if it is missing."""
        if "/" in name or name.startswith("."):
            return None
        text = self._read(name, self._providers)
        return text.strip() or None if text else None

    def _read(self, name: str, folder: Path | None) -> str | None:
        if folder is None:
            return None
        now = time.monotonic()
        known = self._cache.get((folder, name))
        if known is not None and now - known[0] < _LOOK_AGAIN_S:
            return known[2]
        try:
            path = folder / name
            status = path.stat()
            mark = (status.st_mtime_ns, status.st_ino, status.st_size)
            if known is not None and known[1] == mark:
                text = known[2]
            else:
                with path.open(encoding="utf-8") as file:
                    text = file.read(_MAX_BYTES)
        except (OSError, UnicodeDecodeError):
            mark, text = None, None
        self._cache[folder, name] = (now, mark, text)
        return text
