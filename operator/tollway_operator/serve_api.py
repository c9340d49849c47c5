"""The `Ray` port over the Serve REST API of the dashboard: the only caller of it; used by `reconcile`."""

from collections.abc import Mapping
from typing import Any


class ServeApi:
    """`address` is the dashboard's URL (http://127.0.0.1:8265). `http_options` and `proxy_location` go into every PUT;
    Serve takes them only when it starts. `await close()` ends its connections."""

    def __init__(
        self,
        address: str,
        *,
        http_options: Mapping[str, Any] | None = None,
        proxy_location: str = "EveryNode",
        token: str | None = None,
    ) -> None: ...
