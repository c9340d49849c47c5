"""What `spec.source.uri` means: pure, so that the operator checks it at apply by the rules that engines load it by."""

import re
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import parse_qs, unquote

Scheme = Literal["package", "hf", "s3", "pvc", "https"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

FORMS = {
    "package": "package://NAME or package://NAME/FILE",
    "hf": "hf://ORG/NAME, with @REVISION and /FILE if you like",
    "s3": "s3://BUCKET/KEY, an object or a folder of them",
    "pvc": "pvc://CLAIM/PATH",
    "https": "https://HOST/FILE, with #sha256=DIGEST if you like",
}
SECRET_ENTRIES = {
    "hf": ("HF_TOKEN",),
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "https": ("AUTHORIZATION",),
}
"""What a loader needs of source.secretRef where not everybody may read."""

LOADER_ENTRIES = (
    *("HF_TOKEN", "HF_ENDPOINT", "AUTHORIZATION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"),
)
"""Everything that one reads."""

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_PATTERNS = {
    "package": re.compile(rf"(?P<place>{_PART})(/(?P<path>.+))?"),
    "hf": re.compile(rf"(?P<place>{_PART}/{_PART})(@(?P<revision>[A-Za-z0-9._-]+))?(/(?P<path>.+))?"),
    "s3": re.compile(rf"(?P<place>{_PART})/(?P<path>.+)"),
    "pvc": re.compile(r"(?P<place>[a-z0-9]([-a-z0-9.]*[a-z0-9])?)(/(?P<path>.*))?"),
    "https": re.compile(r"(?P<place>[^/?#@]+)(?P<path>/[^#]*)"),
}
_SHA256 = re.compile("[0-9a-f]{64}")


class SourceUriError(ValueError):
    """The address can't be read; the message says how to write it."""


@dataclass(frozen=True, slots=True)
class SourceUri:
    """`place` is the package, repository, bucket, claim or host; `path` what is meant there, "" for all of it."""

    scheme: Scheme
    place: str
    path: str
    revision: str | None = None  # hf
    sha256: str | None = None  # https

    @property
    def address(self) -> str:
        """Without the digest, which says nothing about where it is."""
        revision = f"@{self.revision}" if self.revision else ""
        slash = "" if not self.path or self.path.startswith("/") else "/"
        return f"{self.scheme}://{self.place}{revision}{slash}{self.path}"


def read(uri: str) -> SourceUri:
    scheme, _, rest = uri.partition("://")
    known = next((item for item in SCHEMES if item == scheme), None)
    if known is None:
        raise SourceUriError(f"write one of {', '.join(f'{item}://' for item in SCHEMES)}")
    digest = None
    if known == "https":
        rest, _, fragment = rest.partition("#")
        if fragment:
            digest = parse_qs(fragment).get("sha256", [""])[0].lower()
            if not _SHA256.fullmatch(digest):
                raise SourceUriError("after # only sha256= and 64 hexadecimal digits may stand")
    match = _PATTERNS[known].fullmatch(rest)
    if match is None:
        raise SourceUriError(f"write {FORMS[known]}")
    found = match.groupdict()
    path = found.get("path") or ""
    if ".." in unquote(path).split("/"):
        raise SourceUriError("a path can't have .. in it")
    if known != "https":
        path = path.strip("/")
    return SourceUri(known, found["place"], path, found.get("revision"), digest)
