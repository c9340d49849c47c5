"""Images, audio and files in chats: what is handed on, what is fetched, and what a link can't be made to reach."""

import asyncio
import base64
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.backend import Backend
from support.gateway import Running, check_error, model, plan, until
from support.image_server import PNG, ImageServer, answer, serve_images, with_certificates

from tollway_serving.contract.catalogue import Fallback, Target
from tollway_serving.gateway.catalogue import Model
from tollway_serving.gateway.chat_schema import read_chat
from tollway_serving.gateway.errors import ApiError
from tollway_serving.gateway.media import outside, public_address, public_host
from tollway_serving.gateway.routes.chat import ChatWork

ALL = ("ImageInput", "AudioInput", "FileInput")
DATA = "data:image/png;base64," + base64.b64encode(PNG).decode()
WAV = base64.b64encode(b"RIFF\x24\0\0\0WAVEfmt ").decode()
PDF = "data:application/pdf;base64," + base64.b64encode(b"%PDF-1.7").decode()


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def audio(data: str, kind: str = "wav") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": kind}}


def file(**fields: Any) -> dict[str, Any]:
    return {"type": "file", "file": fields}


def ask(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, *parts]}], **more}


def sent(backend: Backend) -> list[Any]:
    """The parts after the text, as the model got them last."""
    parts: list[Any] = backend.calls[-1].body["messages"][0]["content"][1:]
    return parts


@pytest.fixture
async def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ImageServer]:
    context: ssl.SSLContext = with_certificates(tmp_path, monkeypatch)
    async with serve_images(context) as server:
        yield server


def models(backend: Backend) -> dict[str, Any]:
    remote = Target(url=backend.url, model="far", internal=False, secret="acme")
    entries = [
        model(backend.url, capabilities=ALL),
        model(backend.url, "remote", capabilities=ALL, target=remote),
        model(backend.url, "text", capabilities=()),
    ]
    return {"models": entries, "plans": [plan(model_ids=("small", "remote", "text"))]}


@pytest.fixture
async def running(start: Any, backend: Backend, images: ImageServer) -> Running:
    """A gateway whose models may have what is on this machine."""
    return await start(**models(backend), image_networks="127.0.0.0/8", image_timeout_s=1, image_bytes=100_000)


@pytest.fixture
async def public(start: Any, backend: Backend) -> Running:
    """A gateway as it is by default."""
    return await start(**models(backend))


async def test_parts_reach_models_that_take_them(public: Running, backend: Backend) -> None:
    parts = [image(DATA), audio(WAV), audio(base64.b64encode(b"ID3\x04").decode(), "mp3"),
             file(file_data=PDF, filename="a.pdf")]  # fmt: skip
    for name in ("small", "remote"):
        status, headers, body = await public.post(ask(*parts, model=name))
        assert status == 200, body
        assert sent(backend) == parts
        assert "x-ignored-parameters" not in headers
    for part, code in ((parts[0], "image_not_supported_by_model"), (parts[1], "audio_not_supported_by_model"),
                       (parts[3], "unsupported_file_format")):  # fmt: skip
        check_error(await public.post(ask(part, model="text")), code, "messages[0].content[1]")


def test_a_provider_gets_the_link() -> None:
    entry = model("https://api.acme.example/v1", capabilities=ALL)
    provider = entry.target.model_copy(update={"internal": False})
    entry = entry.model_copy(update={"target": provider})
    known = Model(entry, frozenset(entry.parameters), frozenset(entry.capabilities))
    link = image("https://images.example/cat.png?x=1")
    work = ChatWork(read_chat(ask(link, image(DATA)), ignore=False), ignore=False)
    fitted = work.fit(known)
    assert work.links == (), "nothing is fetched"
    assert work.payload(fitted, entry, 5)["messages"][0]["content"][1:] == [link, image(DATA)]
    for host in PRIVATE:
        inner = ChatWork(read_chat(ask(image(f"https://{host}/a.png")), ignore=False), ignore=False)
        with pytest.raises(ApiError, match=r"image_url\.url"):
            inner.fit(known)


@pytest.mark.parametrize(
    ("url", "out"),
    [
        ("https://api.acme.example/v1", True),
        ("https://93.184.216.34/v1", True),
        ("http://api.acme.example/v1", False),
        ("https://vllm/v1", False),
        ("http://vllm.ml.svc:8000/v1", False),
        ("https://vllm.ml.svc.cluster.local/v1", False),
        ("https://10.1.2.3/v1", False),
        ("https://[fd00::1]/v1", False),
        ("https://localhost:8000/v1", False),
    ],
)
def test_who_is_a_provider(url: str, out: bool) -> None:
    """A server of one's own behind `engine: remote` gets images inline, as our own models do."""
    assert outside(url) == out


async def test_our_own_models_get_the_image(running: Running, backend: Backend, images: ImageServer) -> None:
    images.answers["/moved"] = answer(b"", "302 Found", "location: /a.png", "set-cookie: a=b")
    detailed = {"type": "image_url", "image_url": {"url": images.url("/moved"), "detail": "low"}}
    status, _, body = await running.post(ask(image(images.url()), detailed, image(images.url())))
    assert status == 200, body
    inlined = {"type": "image_url", "image_url": {"url": DATA, "detail": "low"}}
    assert sent(backend) == [image(DATA), inlined, image(DATA)]
    assert len(images.seen) == 3, "the same link is fetched once"
    assert (await running.post(ask(image(images.url()), model="remote")))[0] == 200
    assert sent(backend) == [image(DATA)]
    for head in images.seen:
        assert not {"authorization", "cookie", "x-tollway-token", "referer"} & {
            line.partition(":")[0].lower() for line in head.split("\r\n")
        }


async def test_a_fallback_does_not_fetch_again(start: Any, backend: Backend, images: ImageServer) -> None:
    setup = models(backend)
    setup["models"][0] = model(backend.url, capabilities=ALL, fallbacks=(Fallback(model_id="remote"),))
    running: Running = await start(**setup, image_networks="127.0.0.0/8")
    backend.then(status=500)
    status, headers, _ = await running.post(ask(image(images.url())))
    assert (status, headers["x-model-used"]) == (200, "remote")
    assert sent(backend) == [image(DATA)]
    assert len(images.seen) == 1


WRONG: list[tuple[Any, str, str]] = [
    (image("http://images.example/a.png"), "invalid_value", "image_url.url"),
    (image("ftp://images.example/a.png"), "invalid_value", "image_url.url"),
    (image("file:///etc/passwd"), "invalid_value", "image_url.url"),
    (image("//images.example/a.png"), "invalid_value", "image_url.url"),
    (image("https:///a.png"), "invalid_value", "image_url.url"),
    (image("https://"), "invalid_value", "image_url.url"),
    (image("https://me:secret@images.example/a.png"), "invalid_value", "image_url.url"),
    (image("https://images.example\\@10.0.0.1/a.png"), "invalid_value", "image_url.url"),
    (image("https://images.example/a b"), "invalid_value", "image_url.url"),
    (image("https://images.example/a\r\nx: y"), "invalid_value", "image_url.url"),
    (image("https://images.example:99999/"), "invalid_value", "image_url.url"),
    (image("https://[::1/"), "invalid_value", "image_url.url"),
    (image("https://１２７.0.0.1/"), "invalid_value", "image_url.url"),
    (image("https://x.example/" + "a" * 9000), "invalid_value", "image_url.url"),
    (image("data:image/png;base64,"), "invalid_value", "image_url.url"),
    (image("data:image/png,abc"), "invalid_value", "image_url.url"),
    (image("data:image/png;base64,a$b="), "invalid_value", "image_url.url"),
    (image("data:image/png;base64," + base64.b64encode(b"<svg onload=x>").decode()), "invalid_value", "image_url.url"),
    (image("data:text/html;base64,aGk="), "invalid_value", "image_url.url"),
    (image("data:image/png;base64,ä"), "invalid_value", "image_url.url"),
    (audio(""), "invalid_value", "input_audio.data"),
    (audio("=="), "invalid_value", "input_audio.data"),
    (audio(WAV, "mp3"), "invalid_value", "input_audio.data"),
    (audio("data:audio/wav;base64," + WAV), "invalid_value", "input_audio.data"),
    (audio(WAV, "ogg"), "invalid_value", "input_audio.format"),
    (file(), "invalid_value", "file"),
    (file(filename="a.pdf"), "invalid_value", "file"),
    (file(file_id="file-1", file_data=PDF), "invalid_value", "file"),
    (file(file_data=""), "invalid_value", "file.file_data"),
    (file(file_data="JVBERi0="), "invalid_value", "file.file_data"),
    (file(file_id="file-1"), "file_not_found", "file.file_id"),
    ({"type": "image_url", "image_url": "https://images.example/a.png"}, "invalid_value", "image_url"),
    ({"type": "image_url", "image_url": {}}, "missing_required_parameter", "image_url.url"),
    ({"type": "image_url", "image_url": {"url": ["x"]}}, "invalid_value", "image_url.url"),
    ({"type": "image_url", "image_url": {"url": DATA, "detail": "huge"}}, "invalid_value", "image_url.detail"),
    ({"type": "image", "image": DATA}, "invalid_value", "type"),
    ({"type": "input_image"}, "invalid_value", "type"),
]


@pytest.mark.parametrize("name", ["small", "remote"])
async def test_parts_of_wrong_shapes(public: Running, backend: Backend, name: str, subtests: pytest.Subtests) -> None:
    for part, code, param in WRONG:
        with subtests.test(part=repr(part)[:80]):
            error = check_error(await public.post(ask(part, model=name)), code, f"messages[0].content[1].{param}")
            assert error["message"].isprintable()
            assert "secret" not in error["message"]
    assert backend.calls == []
    assert await public.usage_rows() == []


PRIVATE = [
    "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "0", "10.1.2.3", "172.16.0.1",
    "192.168.1.1", "169.254.169.254", "100.100.100.200", "168.63.129.16", "198.18.0.1", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "localhost", "localhost.", "a.localhost", "127.0.0.1.", "[::1]", "[::]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
    "[2001:0:7f00:1::]", "[fe80::1]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]", "[2001:db8::1]", "[5f00::1]",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
def test_hosts_that_are_not_public(host: str) -> None:
    assert not public_host(host)


@pytest.mark.parametrize("host", ["images.example", "93.184.216.34", "[2606:2800:21f::1]", "1.2.3.4.example"])
def test_hosts_that_are(host: str) -> None:
    assert public_host(host)


def test_networks_may_be_allowed() -> None:
    from ipaddress import ip_network

    inside = [ip_network("10.1.0.0/16"), ip_network("fd00::/8")]
    assert public_address("10.1.2.3", inside)
    assert public_address("::ffff:10.1.2.3", inside)
    assert public_address("fd00::1", inside)
    assert not public_address("10.2.0.1", inside)


async def test_links_to_private_addresses(public: Running, backend: Backend, subtests: pytest.Subtests) -> None:
    """The link is refused where the socket would be made."""
    for host in PRIVATE:
        for name in ("remote", "small"):
            with subtests.test(host=host, model=name):
                answered = await public.post(ask(image(f"https://{host}/a.png"), model=name))
                check_error(answered, "invalid_value", "messages[0].content[1].image_url.url")
    assert backend.calls == []


async def test_names_that_lead_to_private_addresses(
    public: Running, images: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is looked up once, and the address that was found is the one that is judged and connected to."""
    asked = []
    real = socket.getaddrinfo

    def look(host: Any, *args: Any, **options: Any) -> Any:
        if host == "rebind.example":
            asked.append(host)
            return real("127.0.0.1", *args, **options)
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look)
    answered = await public.post(ask(image(images.url(host="rebind.example"))))
    refused = check_error(answered, "invalid_value", "messages[0].content[1].image_url.url")
    missing = check_error(await public.post(ask(image("https://nowhere.invalid/a.png"))), "invalid_value")
    assert refused["message"] == missing["message"], "whether a name exists inside is not told"
    assert asked == ["rebind.example"]
    assert images.connections == 0
    (row, _) = await public.usage_rows(2)
    assert (row["status"], row["http_status"], row["charged_micro"]) == ("error", 400, 0)


async def test_links_that_give_no_image(
    running: Running, backend: Backend, images: ImageServer, subtests: pytest.Subtests
) -> None:
    images.answers |= {
        "/loop": answer(b"", "302 Found", "location: /loop"),
        "/down": answer(b"", "302 Found", "location: http://localhost/a.png"),
        "/in": answer(b"", "307 Temporary Redirect", "location: https://10.0.0.1/a.png"),
        "/file": answer(b"", "301 Moved Permanently", "location: file:///etc/passwd"),
        "/user": answer(b"", "302 Found", f"location: https://a:b@localhost:{images.port}/a.png"),
        "/page": answer(b"<html>", "200 OK", "content-type: image/png"),
        "/empty": answer(b""),
        "/error": answer(b"secret text", "500 Oops"),
        "/large": answer(PNG + bytes(200_000)),
        "/zipped": answer(b"\x1f\x8b\x08\x00", "200 OK", "content-encoding: gzip"),
        "/cut": b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n" + PNG,
        "/garbage": b"\x00\xff\r\n\r\n",
        "/head": b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
    }
    images.slow.add("/slow")
    images.endless.add("/endless")
    for path in (*images.answers, "/slow", "/endless", "/missing"):
        if path == "/a.png":
            continue
        with subtests.test(path=path):
            began = time.monotonic()
            answered = await running.post(ask(image(images.url()), image(images.url(path))))
            error = check_error(answered, "invalid_value", "messages[0].content[2].image_url.url")
            assert time.monotonic() - began < 3
            assert "secret" not in error["message"]
            assert error["message"].isprintable()
    assert backend.calls == []
    assert {row["charged_micro"] for row in await running.usage_rows(16)} == {0}
    assert (await running.post(ask(image(images.url()))))[0] == 200


async def test_images_are_bounded_together(running: Running, images: ImageServer) -> None:
    for number in range(3):
        images.answers[f"/{number}"] = answer(PNG + bytes(40_000))
    links = [image(images.url(f"/{number}")) for number in range(3)]
    assert (await running.post(ask(*links[:2])))[0] == 200
    assert "100000 bytes" in check_error(await running.post(ask(*links)), "invalid_value")["message"]
    many = [image(f"https://images.example/{number}") for number in range(17)]
    check_error(await running.post(ask(*many)), "invalid_value", "messages[0].content[17]")


async def test_a_client_that_leaves_ends_the_fetch(running: Running, images: ImageServer) -> None:
    images.slow.add("/slow")
    request = asyncio.create_task(running.post(ask(image(images.url("/slow")))))
    await until(lambda: bool(images.seen))
    request.cancel()
    (row,) = await running.usage_rows(1)
    assert (row["status"], row["charged_micro"]) == ("cancelled", 0)
