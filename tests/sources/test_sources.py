"""Weights from elsewhere, out of real servers: cached once, whole or not at all, and errors that say what to do."""

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from support.origins import Origin, https, hub

from tollway_serving.engines.protocol import ModelMissingError
from tollway_serving.engines.sources import Places, file_of, local

BODY = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def where(tmp_path: Path) -> Places:
    for name in ("secrets", "claims"):
        (tmp_path / name).mkdir()
    return Places(tmp_path / "cache", tmp_path / "secrets", tmp_path / "claims", timeout=30)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    with https(tmp_path) as (origin, certificate):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        yield origin


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, where: Places) -> Iterator[Origin]:
    """A hub with one repository; its address comes with the Secret."""
    with hub() as origin:
        origin.files = {"org/small/config.json": b"{}", "org/small/model.gguf": BODY, "org/small/docs/a.md": b"a"}
        (where.secrets / "ml_hf_HF_ENDPOINT").write_text(origin.address)
        yield origin


def said(uri: str, where: Places, secret: str | None = None) -> str:
    with pytest.raises(ModelMissingError) as caught:
        local(uri, secret, where)
    return str(caught.value)


# https://


def test_a_file_is_downloaded_once_by_two_replicas(files: Origin, where: Places) -> None:
    files.files["/a/model.gguf"] = BODY
    files.hold = threading.Event()
    uri = f"{files.address}/a/model.gguf"
    found: list[Path] = []
    replicas = [threading.Thread(target=lambda: found.append(local(uri, None, where))) for _ in range(2)]
    for replica in replicas:
        replica.start()
    files.hold.set()
    for replica in replicas:
        replica.join(30)
    assert [path.read_bytes() == BODY for path in found] == [True, True]
    assert len(set(found)) == 1
    whole = [seen for seen in files.seen if seen[0] == "GET"]
    assert len(whole) == 3, "each asks for the version, one downloads"
    assert not list(where.cache.rglob("*.partial"))
    local(uri, None, where)
    assert len(files.seen) == len(whole) + 1


def test_a_broken_download_goes_on_where_it_ended(files: Origin, where: Places) -> None:
    files.files["/model.gguf"] = BODY
    digest = hashlib.sha256(BODY).hexdigest()
    files.cut = [300_000]
    path = local(f"{files.address}/model.gguf#sha256={digest}", None, where)
    assert path.read_bytes() == BODY
    assert [seen[2] for seen in files.seen] == [None, "bytes=300000-"]
    files.files.clear()
    assert local(f"{files.address}/model.gguf#sha256={digest}", None, where) == path, "a digest needs no question"


def test_a_later_attempt_goes_on_too(files: Origin, where: Places) -> None:
    files.files["/model.gguf"] = BODY
    files.cut = [300_000, 0]
    assert "broke off" in said(f"{files.address}/model.gguf#sha256={hashlib.sha256(BODY).hexdigest()}", where)
    assert local(f"{files.address}/model.gguf#sha256={hashlib.sha256(BODY).hexdigest()}", None, where).is_file()
    assert files.seen[-1][2] == "bytes=300000-"


def test_a_changed_file_is_another_version_and_an_old_one_serves_while_the_server_is_away(
    files: Origin, where: Places
) -> None:
    uri = f"{files.address}/model.gguf"
    files.files["/model.gguf"] = b"first"
    first = local(uri, None, where)
    files.files["/model.gguf"] = b"second"
    second = local(uri, None, where)
    assert (first.read_bytes(), second.read_bytes()) == (b"first", b"second")
    closed = Places(where.cache, where.secrets, where.claims, 10)
    port = files.address.rpartition(":")[2]
    files.redirect["/model.gguf"] = f"https://localhost:1/{port}"  # nobody is there
    assert local(uri, None, closed).read_bytes() == b"second"


def test_wrong_digest_missing_file_and_refusal_say_what_to_do(files: Origin, where: Places) -> None:
    files.files["/model.gguf"] = BODY
    uri = f"{files.address}/model.gguf"
    assert f"has sha256 {hashlib.sha256(BODY).hexdigest()}" in said(f"{uri}#sha256={'0' * 64}", where)
    assert not [file for file in where.cache.rglob("*") if file.is_file() and file.name != ".lock"]
    assert "no such file (404)" in said(f"{files.address}/other.gguf", where)
    files.token = "Bearer abc"
    assert "make a Secret with AUTHORIZATION" in said(uri, where)
    assert "Secret ml/web of spec.source.secretRef has not arrived" in said(uri, where, "ml_web")
    (where.secrets / "ml_web_OTHER").write_text("x")
    assert "Secret ml/web needs AUTHORIZATION" in said(uri, where, "ml_web")
    (where.secrets / "ml_web_AUTHORIZATION").write_text("Bearer wrong\n")
    assert "AUTHORIZATION of Secret ml/web gives no right to it" in said(uri, where, "ml_web")
    (where.secrets / "ml_web_AUTHORIZATION").write_text("Bearer abc\n")
    assert local(uri, "ml_web", where).read_bytes() == BODY


def test_a_secret_is_not_shown_to_where_a_redirect_leads(files: Origin, where: Places, tmp_path: Path) -> None:
    files.token = "Bearer abc"
    (where.secrets / "ml_web_AUTHORIZATION").write_text("Bearer abc")
    with hub() as other:
        other.files = {}
        files.redirect["/model.gguf"] = f"{other.address}/model.gguf"
        said(f"{files.address}/model.gguf", where, "ml_web")
        assert other.tokens_seen == {None}


def test_an_archive_is_a_folder(files: Origin, where: Places) -> None:
    def archive(name: str) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
        return buffer.getvalue()

    files.files = {"/m.tar.gz": archive("model/config.json"), "/evil.tgz": archive("../../evil")}
    path = local(f"{files.address}/m.tar.gz", None, where)
    assert [file.name for file in path.iterdir()] == ["config.json"]
    assert "can't be unpacked" in said(f"{files.address}/evil.tgz", where)
    assert not list(where.cache.rglob("evil"))


def test_a_full_disk_is_said(files: Origin, where: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    files.files["/model.gguf"] = BODY
    (where.cache / "sources").mkdir(parents=True)
    real = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if self.name == ".part" and mode != "rb":
            raise OSError(28, "No space left on device")
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    message = said(f"{files.address}/model.gguf", where)
    assert "no room in the cache" in message
    assert re.search(r"\d+ MB free", message)


# hf://


def test_a_repository_and_a_file_of_it(models: Origin, where: Places) -> None:
    folder = local("hf://org/small", "ml_hf", where)
    assert (folder / "model.gguf").read_bytes() == BODY
    assert (folder / "docs" / "a.md").is_file()
    before = len(models.seen)
    assert local("hf://org/small@main", "ml_hf", where) != folder, "another address, though the same files"
    assert local("hf://org/small", "ml_hf", where) == folder
    downloads = [seen for seen in models.seen[before:] if seen[0] == "GET" and "resolve" in seen[1]]
    assert len(downloads) == 3
    only = local("hf://org/small/model.gguf", "ml_hf", where)
    assert only.read_bytes() == BODY
    assert [item.name for item in only.parent.iterdir()] == ["model.gguf"]


def test_a_new_commit_is_another_version_and_the_old_one_serves_while_the_hub_is_away(
    models: Origin, where: Places
) -> None:
    first = local("hf://org/small", "ml_hf", where)
    models.commit = "f00d" + "0" * 36
    models.files["org/small/config.json"] = b'{"new": 1}'
    second = local("hf://org/small", "ml_hf", where)
    assert ((first / "config.json").read_bytes(), (second / "config.json").read_bytes()) == (b"{}", b'{"new": 1}')
    (where.secrets / "ml_hf_HF_ENDPOINT").write_text("http://localhost:1")
    assert local("hf://org/small", "ml_hf", where) == second
    assert "the hub gives no answer" in said("hf://org/other", where, "ml_hf")


def test_what_the_hub_refuses(models: Origin, where: Places) -> None:
    assert "there is no such repository" in said("hf://org/none", where, "ml_hf")
    assert "no revision v9" in said("hf://org/small@v9", where, "ml_hf")
    assert "the repository has no nothing.gguf" in said("hf://org/small/nothing.gguf", where, "ml_hf")
    models.token = "Bearer hf_good"
    assert "Secret ml/hf needs HF_TOKEN" in said("hf://org/small", where, "ml_hf")
    (where.secrets / "ml_hf_HF_TOKEN").write_text("hf_bad")
    assert "HF_TOKEN of Secret ml/hf gives no right to it" in said("hf://org/small", where, "ml_hf")
    (where.secrets / "ml_hf_HF_TOKEN").write_text("hf_good")
    assert local("hf://org/small", "ml_hf", where).is_dir()


# s3://


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    server = ThreadedMotoServer("localhost", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(store: str, where: Places) -> Any:
    entries = {
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": store,
    }
    for name, value in entries.items():
        (where.secrets / f"ml_s3_{name}").write_text(value)
    client = boto3.client(
        "s3", endpoint_url=store, aws_access_key_id="id", aws_secret_access_key="secret", region_name="us-east-1"
    )
    client.create_bucket(Bucket="models")
    for key, body in {"qwen/config.json": b"{}", "qwen/a/weights": BODY, "qwen-2/config.json": b"2"}.items():
        client.put_object(Bucket="models", Key=key, Body=body)
    return client


def test_objects_of_a_bucket(bucket: Any, where: Places) -> None:
    folder = local("s3://models/qwen", "ml_s3", where)
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()) == [
        "a/weights",
        "config.json",
    ]
    assert (folder / "a" / "weights").read_bytes() == BODY
    assert local("s3://models/qwen/a/weights", "ml_s3", where).read_bytes() == BODY
    assert local("s3://models/qwen/", "ml_s3", where) == folder
    bucket.put_object(Bucket="models", Key="qwen/config.json", Body=b'{"a": 1}')
    newer = local("s3://models/qwen", "ml_s3", where)
    assert newer != folder
    assert (newer / "config.json").read_bytes() == b'{"a": 1}'


def test_what_a_store_refuses(bucket: Any, where: Places) -> None:
    assert "there is no bucket none" in said("s3://none/x", where, "ml_s3")
    assert "neither an object qwe nor any below qwe/" in said("s3://models/qwe", where, "ml_s3")
    (where.secrets / "ml_s3_AWS_ENDPOINT_URL").write_text("http://localhost:1")
    assert "the store gives no answer" in said("s3://models/qwen", where, "ml_s3")


# pvc://


def test_a_claim_is_read_where_it_is_mounted(where: Places) -> None:
    (where.claims / "weights" / "qwen").mkdir(parents=True)
    assert local("pvc://weights/qwen", None, where) == where.claims / "weights" / "qwen"
    assert "has no /llama" in said("pvc://weights/llama", where)
    assert "no claim other is mounted here" in said("pvc://other/x", where)


def test_the_one_file_that_an_engine_wants(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    (tmp_path / "readme").touch()
    assert file_of(tmp_path, "*.gguf", "hf://a/b") == tmp_path / "a.gguf"
    assert file_of(tmp_path / "readme", "*.gguf", "hf://a/b") == tmp_path / "readme"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelMissingError, match=r"2 files match .*add the path of one \(a.gguf, b.gguf"):
        file_of(tmp_path, "*.gguf", "hf://a/b")
