"""What a chat's parts may hold beside text: links, data URLs, audio, files. Pure; used by `chat_messages` and `fetch`.

Each check raises ValueError with words for the client, which name no part of what was sent.
"""

import binascii
import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Any, Final

from yarl import URL

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_LINK = 8192
_DATA: Final = re.compile(r"data:([a-z0-9.+-]{1,64}/[a-z0-9.+-]{1,128});base64,", re.IGNORECASE)
_PLAIN: Final = re.compile(r"[!-\[\]-~]+\Z")  # printable ASCII without space and backslash, which readers differ about
_IMAGES: Final = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))
IMAGE_TYPES: Final = "PNG, JPEG, GIF or WebP"
# Answered by a cloud to its own machines only, though the address looks like any other: Azure's host agent.
_PLATFORM: Final = frozenset({ipaddress.ip_address("168.63.129.16")})
_WORLD: Final = ipaddress.ip_network("2000::/3")
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


def image_type(head: bytes) -> str | None:
    """An image's type by its first bytes: what a server or a client says of it may be wrong."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _IMAGES if head.startswith(magic)), None)


def check_part(part: dict[str, Any], handed_on: bool) -> str:
    """The place at fault within the part comes first in ValueError's arguments. `handed_on`: links are opened
    elsewhere, not by us. Answers the link of an image, or ""."""
    kind = part["type"]
    if kind == "image_url":
        return _image(part["image_url"]["url"], handed_on)
    if kind == "input_audio":
        _audio(part["input_audio"])
    else:
        _file(part["file"])
    return ""


def _image(url: str, handed_on: bool) -> str:
    where = "image_url.url"
    if url[:5].lower() == "data:":
        if image_type(_inline(where, url)) is None:
            raise ValueError(where, f"the data URL holds no image; it can be {IMAGE_TYPES}")
        return ""
    try:
        host = link(url).host or ""
    except ValueError as error:
        raise ValueError(where, str(error)) from None
    if handed_on and not public_host(host):
        raise ValueError(where, "the URL's host is no public one")
    return url


def _audio(audio: dict[str, str]) -> None:
    where = "input_audio.data"
    data = _decode(where, audio["data"])
    is_wav = data[:4] == b"RIFF" and data[8:12] == b"WAVE"
    is_mp3 = data[:3] == b"ID3" or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0)
    if not (is_wav if audio["format"] == "wav" else is_mp3):
        raise ValueError(where, f"it is no {audio['format']} file")


def _file(file: dict[str, str | None]) -> None:
    given = [name for name in ("file_id", "file_data") if file.get(name) is not None]
    if len(given) != 1:
        raise ValueError("file", "give one of file_id and file_data")
    if data := file.get("file_data"):
        _inline("file.file_data", data)
    elif given == ["file_data"]:
        raise ValueError("file.file_data", "it is empty")


def _inline(where: str, url: str) -> bytes:
    """The content of a data URL."""
    head = _DATA.match(url)
    if head is None:
        raise ValueError(where, "a data URL begins with data:TYPE/SUBTYPE;base64,")
    return _decode(where, url[head.end() :])


def _decode(where: str, text: str) -> bytes:
    try:
        data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (ValueError, UnicodeEncodeError):
        raise ValueError(where, "it is no base64") from None
    if not data:
        raise ValueError(where, "it is empty")
    return data


def link(text: str) -> URL:
    """A URL of an image as anyone reads it alike: https, a host, nobody's name and password."""
    if len(text) > MAX_LINK or not _PLAIN.match(text):
        raise ValueError(f"a URL has at most {MAX_LINK} characters, and only printable ASCII ones")
    try:
        url = URL(text)
        host, _ = url.host, url.port
    except ValueError:
        raise ValueError("it is no URL") from None
    if url.scheme != "https":
        raise ValueError("it must be an https:// or a data: URL")
    if not host or "%" in host or url.user is not None or url.password is not None:
        raise ValueError("the URL must have a host, and no user name or password")
    return url


def outside(url: str) -> bool:
    """Whether a model's address is a provider's on the internet: one that opens links from there. A server of one's own
    behind `engine: remote` would open them from inside."""
    address = URL(url)
    name = (address.host or "").rstrip(".").lower()
    inner = "." not in name or name.endswith((".svc", ".local", ".internal", ".localdomain", ".lan"))
    return address.scheme == "https" and not inner and public_host(name)


def public_host(host: str) -> bool:
    """False for an address that is not everybody's, however it is written (127.1, 0x7f000001, [::ffff:127.0.0.1])."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return False
    try:
        return public_address(str(ipaddress.ip_address(name.strip("[]"))))
    except ValueError:
        pass
    try:
        return public_address(socket.inet_ntoa(socket.inet_aton(name)))
    except (OSError, UnicodeError):
        return True  # a name


def public_address(text: str, allowed: Iterable[Network] = ()) -> bool:
    """Whether it is an address of the internet at large, or in one of the networks that an installation allows."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in network for network in allowed):
        return True
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return public_address(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
        if address not in _WORLD or address.sixtofour is not None or address.teredo is not None:
            return False  # other ways to write an IPv4 address, and none that a server is at today
    return address.is_global and not address.is_multicast and not address.is_reserved and address not in _PLATFORM
