"""From YAML and JSON files to validated objects: `tollway up -f`, `tollway validate -f`.

Takes what kubectl takes, refuses what the API server would refuse, in the same words, and says where: one line an
error, `file:line: Kind namespace/name: field.path: message`.
"""

import base64
import binascii
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tollway_operator.resources.common import API_VERSION, Metadata
from tollway_operator.resources.rules import json_type
from tollway_operator.resources.validate import KINDS, AnyResource, FieldError, Invalid, Location, validate
from tollway_operator.resources.yaml_nodes import BadYaml, Node, documents

SUFFIXES = (".yaml", ".yml", ".json")
MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_SECRET_BYTES = 1024 * 1024  # as the API server

_TOP = {"apiVersion", "kind", "metadata", "spec", "status"}
_SECRET_TOP = {"apiVersion", "kind", "metadata", "type", "data", "stringData", "immutable"}
_METADATA = {
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
}
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAMESPACE = re.compile("[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SECRET_KEY = re.compile("[-._a-zA-Z0-9]+")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in the files. `line` is 0 where the file itself is meant."""

    file: str
    line: int
    what: str  # "Plan ml/pro", or "" before that is known
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.what, self.message) if part)


@dataclass(frozen=True, slots=True)
class Loaded:
    """One good object, and where it is written."""

    file: str
    line: int
    resource: AnyResource

    @property
    def kind(self) -> str:
        return self.resource.KIND


@dataclass(frozen=True, slots=True)
class LoadedSecret:
    """One `kind: Secret`, decoded. Its values are in no repr."""

    file: str
    line: int
    namespace: str
    name: str
    labels: Mapping[str, str]
    values: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Files:
    """What was found: good objects are there even where others are bad."""

    resources: tuple[Loaded, ...]
    secrets: tuple[LoadedSecret, ...]
    problems: tuple[Problem, ...]


class _Bad(Exception):
    def __init__(self, location: Location, message: str) -> None:
        super().__init__(message)
        self.error = FieldError(location, message)


def load(paths: Sequence[Path]) -> Files:
    """Reads files, and folders with everything below them (*.yaml, *.yml, *.json; hidden ones left out)."""
    reader = _Reader()
    for path in paths:
        found = False
        for file in _files(path):
            found = True
            reader.read_file(file)
        if not found:
            what = (
                f"no {', '.join('*' + suffix for suffix in SUFFIXES)} in this folder" if path.is_dir() else "not there"
            )
            reader.problems.append(Problem(str(path), 0, "", what))
    return reader.result()


def load_text(text: str, file: str = "<text>") -> Files:
    """As `load`, of one file's content."""
    reader = _Reader()
    reader.read_text(text, file)
    return reader.result()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(SUFFIXES) and not name.startswith("."):
                yield Path(folder, name)


class _Reader:
    """Collects objects and problems over all files of one load."""

    def __init__(self) -> None:
        self.resources: list[Loaded] = []
        self.secrets: list[LoadedSecret] = []
        self.problems: list[Problem] = []
        self._places: dict[str, str] = {}  # "Kind ns/name": where it was first
        self._read: set[Path] = set()

    def result(self) -> Files:
        return Files(tuple(self.resources), tuple(self.secrets), tuple(self.problems))

    def read_file(self, path: Path) -> None:
        real = path.resolve()
        if real in self._read:
            return  # named twice, or a folder and a file in it
        self._read.add(real)
        try:
            with path.open("rb") as stream:
                content = stream.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            self.problems.append(Problem(str(path), 0, "", f"can't be read: {error.strerror}"))
            return
        if len(content) > MAX_FILE_BYTES:
            self.problems.append(Problem(str(path), 0, "", f"larger than {MAX_FILE_BYTES // 1024**2} MiB"))
            return
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            self.problems.append(Problem(str(path), line, "", "not UTF-8 text"))
            return
        self.read_text(text, str(path))

    def read_text(self, text: str, file: str) -> None:
        try:
            for node in documents(text):
                self._document(node, file)
        except BadYaml as bad:
            self.problems.append(Problem(file, bad.line, "", str(bad)))

    def _document(self, node: Node, file: str) -> None:
        if (
            isinstance(node.value, dict)
            and node.value.get("kind") == "List"
            and isinstance(node.value.get("items"), list)
        ):
            for index in range(len(node.value["items"])):
                self._document(node.item("items", index), file)
            return
        what = ""
        try:
            kind = _kind(node.value)
            what = kind
            _refuse_unknown((), node.value, _SECRET_TOP if kind == "Secret" else _TOP)
            metadata = _metadata(node.value)
            what = f"{kind} {metadata.namespace}/{metadata.name}"
            if kind == "Secret":
                values = _secret_values(node.value)
                self._claim(what, node, file)
                self.secrets.append(
                    LoadedSecret(file, node.line, metadata.namespace, metadata.name, metadata.labels, values)
                )
                return
            resource = validate(kind, metadata, node.value.get("spec"))
            if isinstance(resource, Invalid):
                self._place_errors(resource, node, file, what)
                return
            self._claim(what, node, file)
            self.resources.append(Loaded(file, node.line, resource))
        except _Bad as bad:
            self.problems.append(Problem(file, node.line_of(bad.error.location), what, str(bad.error)))

    def _claim(self, what: str, node: Node, file: str) -> None:
        """The place of an object; _Bad if another has its kind and name."""
        first = self._places.setdefault(what, f"{file}:{node.line}")
        if first != f"{file}:{node.line}":
            raise _Bad(("metadata", "name"), f"this object is in {first} already")

    def _place_errors(self, invalid: Invalid, node: Node, file: str, what: str) -> None:
        placed = [(node.line_of(error.location), str(error)) for error in (*invalid.errors, *invalid.unknown)]
        self.problems += [Problem(file, line, what, message) for line, message in sorted(placed)]


def _kind(document: Any) -> Any:
    """One of our kinds, or Secret."""
    if not isinstance(document, dict):
        raise _Bad((), f'must be an object with apiVersion, kind, metadata and spec, not "{json_type(document)}"')
    kind, version = document.get("kind"), document.get("apiVersion")
    if kind == "Secret":
        wanted = "v1"
    elif kind in KINDS:
        wanted = API_VERSION
    elif kind is None:
        raise _Bad(("kind",), "Required value")
    else:
        raise _Bad(("kind",), f"no kind of Tollway's: {_shown(kind)}; there are {', '.join(KINDS)} and Secret")
    if version != wanted:
        raise _Bad(("apiVersion",), f"write apiVersion: {wanted}")
    return kind


def _shown(value: object) -> str:
    return str(value)[:63]


def _refuse_unknown(location: Location, fields: Mapping[str, Any], known: set[str]) -> None:
    for name in fields:
        if name not in known:
            raise _Bad((*location, name), "unknown field")


def _metadata(document: Mapping[str, Any]) -> Metadata:
    given = document.get("metadata")
    if given is None:
        raise _Bad(("metadata",), "Required value")
    if not isinstance(given, dict):
        raise _Bad(("metadata",), f'must be of type object: "{json_type(given)}"')
    if "generateName" in given:
        raise _Bad(("metadata", "generateName"), "write a name: there is nobody here who makes one")
    _refuse_unknown(("metadata",), given, _METADATA)
    name, namespace = given.get("name"), given.get("namespace") or "default"
    if name is None:
        raise _Bad(("metadata", "name"), "Required value")
    if not isinstance(name, str) or len(name) > 253 or not _NAME.fullmatch(name):
        raise _Bad(
            ("metadata", "name"),
            "a name has lower-case letters, digits, - and ., and starts and ends with a letter or digit",
        )
    if not isinstance(namespace, str) or len(namespace) > 63 or not _NAMESPACE.fullmatch(namespace):
        raise _Bad(
            ("metadata", "namespace"),
            "a namespace has lower-case letters, digits and -, and starts and ends with a letter or digit",
        )
    labels = given.get("labels") or {}
    if not isinstance(labels, dict):
        raise _Bad(("metadata", "labels"), f'must be of type object: "{json_type(labels)}"')
    for key, value in labels.items():
        if not isinstance(value, str):
            raise _Bad(("metadata", "labels", key), f'must be of type string: "{json_type(value)}"')
    return Metadata(name=name, namespace=namespace, labels=labels)


def _secret_values(document: Mapping[str, Any]) -> dict[str, bytes]:
    """A Secret's entries; stringData wins. No value is in any message."""
    values: dict[str, bytes] = {}
    for part in ("data", "stringData"):
        entries = document.get(part) or {}
        if not isinstance(entries, dict):
            raise _Bad((part,), f'must be of type object: "{json_type(entries)}"')
        for key, value in entries.items():
            if not _SECRET_KEY.fullmatch(key):
                raise _Bad((part, key), "a Secret's key has letters, digits and - . _")
            if not isinstance(value, str):
                raise _Bad((part, key), f'must be of type string: "{json_type(value)}"')
            try:
                values[key] = base64.b64decode(value, validate=True) if part == "data" else value.encode()
            except (binascii.Error, ValueError):
                raise _Bad((part, key), "not base64; plain text goes into stringData") from None
    if sum(map(len, values.values())) > MAX_SECRET_BYTES:
        raise _Bad(("data",), "larger than 1 MiB")
    return values
