"""Where weights come from, on this machine: an HTTPS file server and one that behaves as the Hugging Face hub does.

Real sockets and real TLS; what was asked is in `seen`, and what goes wrong is set on the server.
"""

import hashlib
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Origin:
    """`files` by path. `token`: what Authorization must be. `cut`: bytes of a file's body before the connection breaks,
    once each. `hold`: a download waits for it."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    token: str | None = None
    cut: list[int] = field(default_factory=list)
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range
    hold: threading.Event | None = None
    redirect: dict[str, str] = field(default_factory=dict)
    commit: str = COMMIT
    tokens_seen: set[str | None] = field(default_factory=set)

    def downloads(self, path: str) -> int:
        return sum(method == "GET" and seen == path for method, seen, _ in self.seen)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    origin: Origin

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        origin = self.origin
        path = unquote(urlsplit(self.path).path)
        origin.seen.append((self.command, path, self.headers.get("Range")))
        origin.tokens_seen.add(self.headers.get("Authorization"))
        if origin.token is not None and self.headers.get("Authorization") != origin.token:
            return self.plain(401, b"who are you?")
        if path in origin.redirect:
            self.send_response(302)
            self.send_header("Location", origin.redirect[path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        return self.route(path)

    def route(self, path: str) -> None:
        if path not in self.origin.files:
            return self.plain(404, b"no such file")
        return self.file(self.origin.files[path])

    def file(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        if self.command == "GET" and self.origin.hold is not None:
            assert self.origin.hold.wait(30)
        start, status, wanted = 0, 200, self.headers.get("Range")
        if wanted:
            start, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
            if start >= len(body):
                return self.plain(416, b"")
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()[:40]}"')
        self.send_header("Content-Length", str(len(body) - start))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        if self.origin.cut and len(body) > self.origin.cut[0]:
            self.wfile.write(body[start : start + self.origin.cut.pop(0)])
            self.close_connection = True
            return None
        self.wfile.write(body[start:])
        return None

    def plain(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _HubHandler(_Handler):
    """`files` are ORG/NAME/FILE."""

    def route(self, path: str) -> None:
        parts = path.strip("/").split("/")
        origin = self.origin
        if parts[:2] == ["api", "models"]:
            repo = "/".join(parts[2:4])
            files = [name.removeprefix(f"{repo}/") for name in origin.files if name.startswith(f"{repo}/")]
            if not files:
                return self.plain(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if parts[4:5] == ["revision"] and parts[5] not in ("main", origin.commit):
                return self.plain(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            if parts[4:5] == ["tree"]:
                items = [
                    {"type": "file", "path": name, "size": len(origin.files[f"{repo}/{name}"]), "oid": "0" * 40}
                    for name in files
                ]
                return self.json(items)
            return self.json({"id": repo, "sha": origin.commit, "siblings": [{"rfilename": name} for name in files]})
        if parts[2:3] == ["resolve"]:
            name = "/".join([*parts[:2], *parts[4:]])
            if name not in origin.files:
                return self.plain(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self.file(origin.files[name], {"X-Repo-Commit": origin.commit})
        return self.plain(404, b"")

    def json(self, value: object) -> None:
        self.plain(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is what some tests are about."""


@contextmanager
def https(folder: Path) -> Iterator[tuple[Origin, Path]]:
    """A file server with TLS, and the certificate to trust (SSL_CERT_FILE)."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with _serving(_Handler, "https", context) as origin:
        yield origin, certificate


@contextmanager
def hub() -> Iterator[Origin]:
    with _serving(_HubHandler, "http", None) as origin:
        yield origin


@contextmanager
def _serving(handler: type[_Handler], scheme: str, context: ssl.SSLContext | None) -> Iterator[Origin]:
    origin = Origin()
    server = _Server(("localhost", 0), type("Handler", (handler,), {"origin": origin}))
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    origin.address = f"{scheme}://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield origin
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
