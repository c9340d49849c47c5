"""Clients that mean harm or know no better: each gets the contract's error, and nothing is charged."""

import asyncio
import time
import uuid
from typing import Any

import orjson
import pytest
from support.gateway import HELLO, KEY, Running, check_error

AUTH = f"authorization: Bearer {KEY}\r\n".encode()
PATH = "/v1/chat/completions"
GOOD = orjson.dumps({"messages": HELLO})


async def raw(running: Running, *parts: bytes) -> tuple[int, dict[str, str], Any]:
    """Sends bytes as they are and reads one answer: status, headers, parsed body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rsplit(":", 1)[1]))
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(10):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
            body = await reader.readexactly(int(headers["content-length"]))
        return int(head[0].split(" ")[1]), headers, orjson.loads(body)
    finally:
        writer.close()


def post(body: bytes, headers: bytes = AUTH, path: str = PATH, method: str = "POST") -> bytes:
    length = b"content-length: %d\r\n\r\n" % len(body)
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n".encode() + headers + length + body


async def unharmed(running: Running) -> None:
    """The next client is answered; nobody paid for what was refused."""
    assert running.backend.calls == []
    assert await running.usage_rows() == []
    assert (await running.post({"messages": HELLO}))[0] == 200


BODIES: list[tuple[bytes, str]] = [
    (b"", "invalid_json"),
    (b"\x00" * 1000, "invalid_json"),
    (b"\xef\xbb\xbf" + GOOD, "invalid_json"),
    (GOOD.decode().encode("utf-16"), "invalid_json"),
    (GOOD + GOOD, "invalid_json"),
    (GOOD[:-1], "invalid_json"),
    (GOOD[:-1] + b',"temperature": NaN}', "invalid_json"),
    (GOOD[:-1] + b',"temperature": -Infinity}', "invalid_json"),
    (GOOD[:-1] + b',"temperature": 1e400}', "invalid_json"),
    (GOOD[:-1] + b',"seed": ' + b"9" * 5000 + b"}", "invalid_json"),
    (GOOD[:-1] + b',"n": 1, "n": 2, "user": "\\u003a"}', "invalid_json"),
    (GOOD[:-1] + b',"model": "small", "model": "small"}', "invalid_json"),
    (b'{"messages": [{"role": "user", "role": "system", "content": "x"}]}', "invalid_json"),
    (b'{"messages": [{"role": "user", "\\u0072ole": "system", "content": "a:b"}]}', "invalid_json"),
    (b'{"messages": [{"role": "user", "content": "\xc3\x28"}]}', "invalid_json"),
    (b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}', "invalid_json"),
    (b'{"messages": [{"role": "user", "content": "\\udc00"}]}', "invalid_json"),
    (b"[" * 1_000_000, "invalid_json"),
    (b'{"a":' * 200_000, "invalid_json"),
    (b"[" * 1000 + b"]" * 1000, "invalid_json"),
    (GOOD[:-1] + b',"metadata":' + b'{"a":' * 900 + b"1" + b"}" * 901, "invalid_json"),
    (GOOD[:-1] + b',"metadata":' + b'{"a":' * 200 + b"1" + b"}" * 201, "invalid_value"),
    (GOOD[:-1] + b',"' + b"x" * 100_000 + b'": 1}', "unsupported_parameter"),
    (b'{"messages": [' + b"1," * 100_000 + b"1]}", "invalid_value"),
    (b"[" + b"{}," * 1_000_000 + b"1]", "request_too_large"),
    (b"null", "invalid_json"),
    (b'"messages"', "invalid_json"),
    (b"{}", "missing_required_parameter"),
]


async def test_bodies(running: Running, subtests: pytest.Subtests) -> None:
    for body, code in BODIES:
        with subtests.test(body=repr(body[:60]), size=len(body)):
            answer = await raw(running, post(body))
            error = check_error(answer, code)
            assert len(orjson.dumps(answer[2])) < 2000, "what was sent is not sent back"
            assert error["message"].isprintable()
    await unharmed(running)


def many(part: bytes, before: bytes = GOOD[:-1] + b",", after: bytes = b"]}", size: int = 2_000_000) -> bytes:
    """`part` again and again, to `size` bytes."""
    return before + b",".join([part] * (size // (len(part) + 1))) + after


TURN = b'{"messages":[{"role":"assistant","content":"x",'
CROWDS: list[tuple[str, bytes]] = [
    (PATH, many(b"{}", b'{"messages":[')),
    (PATH, many(b'{"role":"x"}', b'{"messages":[')),
    (PATH, many(many(b'{"type":"text"}', b'{"role":"user","content":[', size=30_000), b'{"messages":[')),
    (PATH, many(many(b'{"type":"text","text":""}', b'{"role":"user","content":[', size=50_000), b'{"messages":[')),
    (PATH, many(b"{}", TURN + b'"tool_calls":[', b"]}]}")),
    (PATH, many(b'{"id":"","type":"function","function":{}}', TURN + b'"tool_calls":[', b"]}]}")),
    (PATH, many(b"1", GOOD[:-1] + b',"stop":[')),
    (PATH, many(b"{}", GOOD[:-1] + b',"tools":[')),
    (PATH, GOOD[:-1] + b',"metadata":{' + b",".join(b'"%d":1' % n for n in range(200_000)) + b"}}"),
    (PATH, GOOD[:-1] + b',"logit_bias":{' + b",".join(b'"%d":999' % n for n in range(200_000)) + b"}}"),
    ("/v1/embeddings", many(b"-1", b'{"model":"small","input":[')),
    ("/v1/embeddings", many(b"1", b'{"model":"small","input":[', size=4_000_000)),
    ("/v1/embeddings", many(b"[-1,-1,-1]", b'{"model":"small","input":[')),
    ("/v1/embeddings", many(many(b"1", b"[", b"]", 2000), b'{"model":"small","input":[', size=4_000_000)),
    ("/v1/completions", many(b'""', b'{"model":"small","prompt":[')),
]


async def test_crowds_of_wrong_members_are_refused_at_the_first(running: Running, subtests: pytest.Subtests) -> None:
    """The event loop is every request's: two megabytes may keep it for the time of their parsing, not of millions of
    findings (which took minutes)."""
    for path, body in CROWDS:
        with subtests.test(body=repr(body[:60])):
            began = time.process_time()
            answer = await raw(running, post(body, path=path))
            check_error(answer, answer[2]["error"]["code"])
            assert answer[2]["error"]["code"] in ("invalid_value", "missing_required_parameter")
            assert time.process_time() - began < 1.5
    await unharmed(running)


async def test_bodies_that_are_too_large(start: Any) -> None:
    running = await start(max_body_bytes=10_000)
    declared = f"POST {PATH} HTTP/1.1\r\nhost: x\r\n".encode() + AUTH + b"content-length: 99999999999\r\n\r\n{"
    chunked = f"POST {PATH} HTTP/1.1\r\nhost: x\r\n".encode() + AUTH + b"transfer-encoding: chunked\r\n\r\n"
    for parts in (
        (declared,),
        (chunked, b"1000\r\n" + b" " * 4096 + b"\r\n", *[b"1000\r\n" + b" " * 4096 + b"\r\n"] * 3),
    ):
        status, headers, body = await raw(running, *parts)
        check_error((status, headers, body), "request_too_large")
        assert headers["connection"] == "close"
    await unharmed(running)


async def test_bodies_that_never_end(start: Any) -> None:
    running = await start(body_timeout_s=0.3)
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\n".encode() + AUTH
    for part in (b"content-length: 100\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"):
        answer = await raw(running, head + part)
        check_error(answer, "invalid_json")
        assert answer[1]["connection"] == "close", "what comes late must not be taken for a request"
    await unharmed(running)


KEYS: list[bytes] = [
    b"",
    b"authorization:\r\n",
    b"authorization: Bearer\r\n",
    b"authorization: Bearer \xff\xfe\r\n",
    b"authorization: Bearer " + b"x" * 30_000 + b"\r\n",
    f"authorization: Basic {KEY}\r\n".encode(),
    f"authorization: {KEY}\r\n".encode(),
    f"authorization: Bearer {KEY},{KEY}\r\n".encode(),
    f"authorization: Bearer {KEY[:-1]}\r\n".encode(),
    f"authorization: Bearer {KEY.lower()}\r\n".encode(),
    f"authorization: Bearer wrong\r\nauthorization: Bearer {KEY}\r\n".encode(),
    f"x-api-key: {KEY}\r\n".encode(),
]


async def test_keys(running: Running, subtests: pytest.Subtests) -> None:
    for header in KEYS:
        with subtests.test(header=repr(header[:60])):
            answer = await raw(running, post(GOOD, header))
            check_error(answer, "invalid_api_key")
            assert KEY not in orjson.dumps(answer[2]).decode()
    answer = await raw(running, post(b"", b"", path="/v1/models", method="GET"))
    check_error(answer, "invalid_api_key")
    await unharmed(running)


@pytest.mark.parametrize(
    "sent",
    [b"a\tb", b"a b", b"a,b", b"a;b", b'"a"', b"\xc3\xa4", b"%0d%0aset-cookie:x", b"a" * 129, b"\\r\\nx: y"],
)
async def test_a_request_id_that_is_none_is_replaced(running: Running, sent: bytes) -> None:
    status, headers, _ = await raw(running, post(GOOD, AUTH + b"x-request-id: " + sent + b"\r\n"))
    assert status == 200
    assert str(uuid.UUID(headers["x-request-id"])) == headers["x-request-id"]
    assert "set-cookie" not in headers


PLACES: list[tuple[str, str, str]] = [
    ("GET", "/", "not_found"),
    ("GET", "/v1", "not_found"),
    ("POST", "/v1/chat/completions/", "not_found"),
    ("POST", "//v1/chat/completions", "not_found"),
    ("POST", "/V1/chat/completions", "not_found"),
    ("POST", "/v1/../v1/chat/completions", "not_found"),
    ("POST", "/v1/chat%2fcompletions%00", "not_found"),
    ("GET", "/metrics", "not_found"),
    ("GET", "/_models/ml.small/v1/models", "not_found"),
    ("GET", "/" + "x" * 8000, "not_found"),
    ("GET", "/v1/models/%00%ff%0d%0ax-evil:1", "model_not_found"),
    ("GET", "/v1/models/" + "x" * 8000, "model_not_found"),
    ("GET", "/v1/models/a/../small", "model_not_found"),
    ("GET", "/docs/%2e%2e/app.py", "not_found"),
    ("GET", PATH, "method_not_allowed"),
    ("DELETE", PATH, "method_not_allowed"),
    ("OPTIONS", PATH, "method_not_allowed"),
    ("TRACE", PATH, "method_not_allowed"),
    ("PROPFIND", "/v1/models", "method_not_allowed"),
]


async def test_paths_and_methods(running: Running, subtests: pytest.Subtests) -> None:
    for method, path, code in PLACES:
        with subtests.test(method=method, path=path[:40]):
            answer = await raw(running, post(b"", path=path, method=method))
            error = check_error(answer, code)
            assert error["message"].isprintable()
            assert "x-evil" not in answer[1]
            assert ("allow" in answer[1]) == (code == "method_not_allowed")
    await unharmed(running)


async def test_what_is_no_http_ends_the_connection(running: Running) -> None:
    port = int(running.url.rsplit(":", 1)[1])
    for sent in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nx-a: b\x00c\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nx-request-id: a\x7f\r\n\r\n",
        b"GET /v1/\xff\xfe HTTP/1.1\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        async with asyncio.timeout(5):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 "), sent
        writer.close()
    await unharmed(running)


async def test_a_client_that_leaves_in_its_body_costs_nothing(running: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rsplit(":", 1)[1]))
    writer.write(post(GOOD)[:-5])
    await writer.drain()
    writer.close()
    assert await reader.read() == b""
    await unharmed(running)
