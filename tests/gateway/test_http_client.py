"""The client to models on raw sockets: what is reused, what is refused, and how a call ends that goes wrong."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.gateway import until

from tollway_serving.contract.catalogue import Target, Timeouts
from tollway_serving.gateway.http_client import HttpAnswer, HttpUpstream
from tollway_serving.gateway.secrets import Secrets
from tollway_serving.gateway.upstream import UpstreamFailed, read_all

OK = b"HTTP/1.1 200 OK\r\ncontent-type: Application/JSON; charset=utf-8\r\ncontent-length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Model:
    """A server that answers each request with the next of `answers`."""

    def __init__(self, *answers: bytes | Script) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.closed = asyncio.Event()  # a client's side
        self.heads: list[bytes] = []
        self.port = 0

    @property
    def target(self) -> Target:
        return Target(url=f"http://127.0.0.1:{self.port}/v1", model="m", internal=False)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                await reader.readexactly(int(head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0]))
                answer = self.answers.pop(0)
                if isinstance(answer, bytes):
                    writer.write(answer)
                    await writer.drain()
                else:
                    await answer(reader, writer)
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        finally:
            writer.close()


def says(raw: bytes) -> Script:
    """Answers this, and then is silent until its client leaves."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        await reader.read()

    return say


@asynccontextmanager
async def running(model: Model, tls: ssl.SSLContext | None = None) -> AsyncIterator[HttpUpstream]:
    server = await asyncio.start_server(model.serve, "127.0.0.1", 0, ssl=tls)
    model.port = server.sockets[0].getsockname()[1]
    client = HttpUpstream(Secrets(None))
    await client.start()
    try:
        yield client
    finally:
        await client.close()
        server.close()


async def ask(client: HttpUpstream, target: Target, **timeouts: int) -> HttpAnswer:
    return await client.post(target, "/chat/completions", b'{"a":1}', "request-1", Timeouts(**timeouts))


async def test_one_connection_serves_calls_that_follow_each_other_however_their_ends_are_told() -> None:
    model = Model(OK, CHUNKED + b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n", OK)
    async with running(model) as client:
        bodies = []
        for _ in range(3):
            answer = await ask(client, model.target)
            bodies.append(await read_all(answer, 100))
            answer.close()
        assert bodies == [b"{}", b"ab", b"{}"]
        assert model.connections == 1
        assert answer.content_type == "application/json"
        assert model.heads[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % model.port)


@pytest.mark.parametrize(
    "answer",
    [
        OK.replace(b"content-type", b"connection: close\r\ncontent-type"),
        OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
        OK + OK,  # bytes that nobody asked for
    ],
)
async def test_a_connection_that_may_not_be_used_again_is_not(answer: bytes) -> None:
    model = Model(answer, OK)
    async with running(model) as client:
        for _ in range(2):
            assert await read_all(await ask(client, model.target), 100) == b"{}"
        assert model.connections == 2


async def test_a_connection_that_the_model_closed_meanwhile_is_not_taken() -> None:
    async def last(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)

    model = Model(last, OK)
    async with running(model) as client:
        await read_all(await ask(client, model.target), 100)
        await until(lambda: not any(client._pool._idle.values()))  # the end of the connection was read
        assert await read_all(await ask(client, model.target), 100) == b"{}"
        assert model.connections == 2


async def test_two_calls_at_once_have_a_connection_each() -> None:
    both = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if model.connections == 2:
            both.set()
        await both.wait()
        writer.write(OK)

    model = Model(wait, wait)
    async with running(model) as client:
        first, second = await asyncio.gather(ask(client, model.target), ask(client, model.target))
        assert await read_all(first, 10) == await read_all(second, 10) == b"{}"


async def test_early_hints_and_trailers_are_passed_over() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\ncontent-type: text/plain\r\n\r\n"
    body = CHUNKED + b"2\r\n{}\r\n0\r\nretry-after: 7\r\n\r\n"
    model = Model(hints + body, OK)
    async with running(model) as client:
        answer = await ask(client, model.target)
        assert (answer.status, answer.content_type, answer.retry_after_s) == (200, "", None)
        assert await read_all(answer, 10) == b"{}"
        await ask(client, model.target)
        assert model.connections == 1


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async def until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of")
        await writer.drain()
        writer.write(b" it")

    model = Model(until_closed)
    async with running(model) as client:
        assert await read_all(await ask(client, model.target), 100) == b"all of it"


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        (CHUNKED + b"2\r\nok\r\n", b"ok"),  # no last chunk
        (OK.replace(b"length: 2", b"length: 20"), b"{}"),
    ],
)
async def test_an_answer_that_breaks_off_gives_what_came_and_then_fails(sent: bytes, got: bytes) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)

    model = Model(cut)
    async with running(model) as client:
        answer = await ask(client, model.target)
        assert await answer.chunk() == got
        with pytest.raises(UpstreamFailed) as failed:
            await answer.chunk()
        assert failed.value.trouble == "broken"


@pytest.mark.parametrize(
    "sent",
    [
        b"",  # closes at once
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\n",  # and no more
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000,
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 5_000,
        CHUNKED + b"0\r\n" + b"x: y\r\n" * 20_000,  # trailers without end
        CHUNKED + b"1;" + b"x" * 1_000_000,
    ],
)
async def test_what_is_no_answer_fails_and_is_not_kept_in_memory(sent: bytes) -> None:
    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()
        if len(sent) > 50_000:
            await reader.read()  # the client is to leave first

    model = Model(send)
    async with running(model) as client:
        with pytest.raises(UpstreamFailed) as failed:
            await asyncio.wait_for(read_all(await ask(client, model.target), 1000), 5)
        assert failed.value.trouble == "broken"


async def test_a_slow_reader_stops_the_model_and_gets_everything() -> None:
    blocked = asyncio.Event()
    size = 32 * 1024 * 1024

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=0)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(size // 65536):
            writer.write(b"x" * 65536)
            drain = asyncio.ensure_future(writer.drain())
            done, _ = await asyncio.wait([drain], timeout=0.3)
            if not done:
                blocked.set()
            await drain

    model = Model(flood)
    async with running(model) as client:
        answer = await ask(client, model.target)
        await asyncio.wait_for(blocked.wait(), 20)
        assert answer._size < 2 * 1024 * 1024
        got = 0
        while data := await answer.chunk():
            got += len(data)
        assert got == size


async def test_silence_ends_a_stream_after_its_limit_and_only_then() -> None:
    model = Model(says(CHUNKED + b"1\r\na\r\n"))
    async with running(model) as client:
        answer = await ask(client, model.target)
        answer.limit_silence(0.1)
        assert await answer.chunk() == b"a"
        with pytest.raises(UpstreamFailed) as failed:
            await asyncio.wait_for(answer.chunk(), 5)
        assert failed.value.trouble == "timeout"
        answer.close()


async def test_closing_before_the_end_drops_the_connection() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"1\r\na\r\n")
        await reader.read()
        model.closed.set()

    model = Model(endless)
    async with running(model) as client:
        answer = await ask(client, model.target)
        assert await answer.chunk() == b"a"
        answer.close()
        await asyncio.wait_for(model.closed.wait(), 5)


async def test_a_call_that_is_cancelled_before_the_head_drops_its_connection() -> None:
    asked = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        model.closed.set()

    model = Model(hang)
    async with running(model) as client:
        task = asyncio.ensure_future(ask(client, model.target))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(model.closed.wait(), 5)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/v1",
        "http:///v1",
        "http://user:word@127.0.0.1/v1",
        "http://127.0.0.1:99999/v1",
        "http://[::1/v1",
        "x",
    ],
)
async def test_a_url_that_can_not_be_asked_is_no_connection(url: str) -> None:
    async with running(Model()) as client:
        with pytest.raises(UpstreamFailed) as failed:
            await ask(client, Target(url=url, model="m"))
        assert failed.value.trouble == "connect"


async def test_nothing_that_listens_and_nothing_that_answers_are_no_connection() -> None:
    async with running(Model()) as client:
        for url, limit in (("http://127.0.0.1:9/v1", 1000), ("http://192.0.2.1/v1", 100)):
            with pytest.raises(UpstreamFailed) as failed:
                await asyncio.wait_for(ask(client, Target(url=url, model="m"), connect_ms=limit), 5)
            assert failed.value.trouble == "connect"


async def test_a_secret_with_a_line_end_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "providers").mkdir()
    (tmp_path / "providers" / "key").write_text("sk-1\r\nx-admin: yes")
    model = Model(OK)
    async with running(model) as client:
        client._secrets = Secrets(tmp_path)
        target = model.target.model_copy(update={"secret": "key"})
        with pytest.raises(UpstreamFailed) as failed:
            await ask(client, target)
        assert failed.value.trouble == "connect"
        assert "sk-1" not in str(failed.value)
        assert model.connections == 0


async def test_tls_is_checked_against_the_host(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(  # noqa: ASYNC221
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=model", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    model = Model(OK, OK)
    async with running(model, context) as client:
        localhost: dict[str, Any] = {"url": f"https://localhost:{model.port}/v1"}
        with pytest.raises(UpstreamFailed):  # nobody vouches for it
            await ask(client, model.target.model_copy(update=localhost))
        assert client._tls is not None
        client._tls.load_verify_locations(certificate)
        assert await read_all(await ask(client, model.target.model_copy(update=localhost)), 10) == b"{}"
        with pytest.raises(UpstreamFailed):  # another name
            await ask(client, model.target.model_copy(update={"url": f"https://127.0.0.1:{model.port}/v1"}))


async def pieces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A body in three pieces, each when something has been read of the one before."""
    writer.write(CHUNKED)
    for piece in (b"a", b"b", b"c"):
        writer.write(b"1\r\n" + piece + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    await reader.read()


async def test_a_sink_takes_what_comes_until_it_leaves_something() -> None:
    model = Model(pieces)
    async with running(model) as client:
        answer = await ask(client, model.target)
        taken: list[bytes] = []

        def sink(data: bytes) -> bytes | None:
            taken.append(data)
            return None if len(taken) != 2 else b"rest of " + data

        assert await answer.pump(sink) == b"rest of b"
        assert await answer.pump(sink) is None
        assert taken == [b"a", b"b", b"c"]


async def test_what_a_sink_raises_reaches_the_one_who_waits() -> None:
    model = Model(pieces)
    async with running(model) as client:
        answer = await ask(client, model.target)
        calls = []

        def sink(data: bytes) -> bytes | None:
            calls.append(data)
            if data == b"b":
                raise LookupError(data)
            return None

        with pytest.raises(LookupError):
            await answer.pump(sink)
        assert await answer.chunk() == b"c"
        assert calls == [b"a", b"b"]


async def test_a_stream_that_breaks_while_it_is_pumped_has_given_what_it_had() -> None:
    model, taken = Model(says(CHUNKED + b"1\r\na\r\nnonsense\r\n")), []
    async with running(model) as client:
        answer = await ask(client, model.target)
        with pytest.raises(UpstreamFailed):
            await answer.pump(taken.append)
        assert taken == [b"a"]


async def test_silence_ends_a_stream_that_is_pumped() -> None:
    model, taken = Model(says(CHUNKED + b"1\r\na\r\n")), []
    async with running(model) as client:
        answer = await ask(client, model.target)
        answer.limit_silence(0.1)
        with pytest.raises(UpstreamFailed) as failed:
            await asyncio.wait_for(answer.pump(taken.append), 5)
        assert failed.value.trouble == "timeout"
        assert taken == [b"a"]
        answer.close()


async def test_a_stream_that_pauses_is_read_to_its_end_afterwards() -> None:
    model, taken = Model(pieces, OK), []
    async with running(model) as client:
        answer = await ask(client, model.target)

        def sink(data: bytes) -> None:
            taken.append(data)
            answer.pause(0.1)

        assert await answer.pump(sink) is None
        assert taken[0] == b"a"
        assert b"".join(taken) == b"abc"
        assert len(taken) < 3, "what came meanwhile was read at once"
