"""An https server on this machine that gives images and misbehaves on request: what a client's links point to.

`with_certificates` makes its certificate and has every TLS context of the test trust it.
"""

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

PNG = b"\x89PNG\r\n\x1a\n" + bytes(24)


def with_certificates(folder: Path, patch: pytest.MonkeyPatch) -> ssl.SSLContext:
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    names = "subjectAltName=DNS:localhost,DNS:images.example,DNS:rebind.example,IP:127.0.0.1"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=images", "-addext", names, "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    patch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


class ImageServer:
    """`answers` has raw HTTP answers by path; `seen` the heads of all requests, `connections` their number."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.seen: list[str] = []
        self.answers: dict[str, bytes] = {"/a.png": answer(PNG)}
        self.slow: set[str] = set()  # paths whose answer never ends
        self.endless: set[str] = set()  # paths whose body never ends

    def url(self, path: str = "/a.png", host: str = "localhost") -> str:
        return f"https://{host}:{self.port}{path}"

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.seen.append(head)
            path = head.split(" ")[1]
            if path in self.slow:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nx")
                await reader.read()
            elif path in self.endless:
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + PNG)
                while True:
                    writer.write(bytes(65536))
                    await writer.drain()
            else:
                writer.write(self.answers.get(path, answer(b"nothing here", "404 Not Found")))
                await writer.drain()
        writer.close()


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@asynccontextmanager
async def serve_images(context: ssl.SSLContext) -> AsyncIterator[ImageServer]:
    images = ImageServer()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        images.connections += 1
        task = asyncio.create_task(images.connection(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    images.port = server.sockets[0].getsockname()[1]
    try:
        yield images
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
