"""Keys: made by both `Objects` ports for `ensure_key` and `rotate_key`, and described without leaving their Secret.

A generated key is `sk-tw-`, 43 base62 characters from 256 random bits, and 6 of checksum: CRC32 of all that precedes.
"""

import hashlib
import secrets
import zlib

from tollway_operator.ports import SecretValue

PREFIX = "sk-tw-"
BODY = 43
CHECKSUM = 6
MINIMUM_IMPORTED = 20
"""Characters that an imported key must have at the least."""

OWNER_LABEL = "tollway.dev/api-key"
MANAGED_BY = "app.kubernetes.io/managed-by"
"""Labels of the Secrets that are ours: the ApiKey's name, and "tollway"."""

KEY_FIELD = "OPENAI_API_KEY"
URL_FIELD = "OPENAI_BASE_URL"

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode()), CHECKSUM)


def generate() -> str:
    """A fresh key."""
    head = PREFIX + _base62(secrets.randbits(256), BODY)
    return head + _checksum(head)


def is_generated(key: str) -> bool:
    """Whether it has the form and the checksum of a key of ours; says nothing about whether it is accepted."""
    if len(key) != len(PREFIX) + BODY + CHECKSUM or not key.startswith(PREFIX):
        return False
    return _checksum(key[:-CHECKSUM]) == key[-CHECKSUM:]


def describe(value: str) -> SecretValue:
    """What may be known of a Secret's value outside the Secret."""
    value = value.strip()
    return SecretValue(
        sha256=hashlib.sha256(value.encode()).hexdigest(),
        length=len(value),
        prefix=value[:10] if is_generated(value) else "",
        last_four=value[-4:] if len(value) >= MINIMUM_IMPORTED else "",
    )
