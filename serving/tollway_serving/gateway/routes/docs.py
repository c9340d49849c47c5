"""GET /openapi.json and GET /docs: the API's description, for programs and for people. Free, and without a key.

The page is Swagger UI. Its files come from a Python package that carries them unchanged, are served from here and are
pinned by their hashes, so that a browser runs nothing else and asks no other host. They are read when first asked for.
"""

import asyncio
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tollway_serving.gateway import openapi
from tollway_serving.gateway.call import Call
from tollway_serving.gateway.errors import ApiError
from tollway_serving.gateway.route import Route

if TYPE_CHECKING:
    from tollway_serving.gateway.app import Gateway

_PACKAGE: Final = "fastapi_swagger"
PINNED: Final = {
    "swagger-ui-bundle.js": "sha256-P2q/cEgNt+B5FN9MmKdzhfIupYXq9Fej5kFboOri0Wc=",
    "swagger-ui.css": "sha256-w8/oJIxLC4lnNgD7gpkk6vusbeS8SysG9fUkNIMHTQo=",
}
"""Subresource integrity of the files of Swagger UI 5.34.0."""

_TYPES: Final = {".js": b"text/javascript; charset=utf-8", ".css": b"text/css; charset=utf-8"}
_PAGE: Final = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tollway API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css" integrity="{PINNED["swagger-ui.css"]}">
<div id="ui"></div>
<script src="docs/swagger-ui-bundle.js" integrity="{PINNED["swagger-ui-bundle.js"]}" defer></script>
<script src="docs/page.js" defer></script>
</html>
"""
_SCRIPT: Final = """"use strict";
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#ui",
  deepLinking: true,
  validatorUrl: null,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
});
"""
_SECURITY: Final = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


async def describe(gateway: "Gateway", call: Call) -> None:
    body = await asyncio.to_thread(openapi.document, gateway.routes)
    await _send(call, b"application/json", body)


async def page(gateway: "Gateway", call: Call) -> None:
    await _send(call, b"text/html; charset=utf-8", _PAGE.encode())


async def asset(gateway: "Gateway", call: Call) -> None:
    if call.rest != "page.js" and call.rest not in PINNED:
        raise ApiError("not_found", "There is nothing here. Check the URL's path.")
    body = await asyncio.to_thread(_file, call.rest)
    await _send(call, _TYPES[Path(call.rest).suffix], body)


@cache
def _file(name: str) -> bytes:
    if name == "page.js":
        return _SCRIPT.encode()
    spec = find_spec(_PACKAGE)  # never imported: only its files are wanted
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"{_PACKAGE} is not installed: it carries the files of /docs")
    return Path(spec.submodule_search_locations[0], "resources", name).read_bytes()


async def _send(call: Call, content_type: bytes, body: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await call.begin(200, [*headers, (b"cache-control", b"public, max-age=300"), *_SECURITY])
    await call.send(body, more=False)


ROUTES = tuple(
    Route("GET", path, handler, (), bare=bare)
    for bare in (True, False)
    for path, handler in (("/openapi.json", describe), ("/docs", page), ("/docs/{name}", asset))
)
