"""How hf://, s3:// and https:// are downloaded; `sources` calls them. Their libraries are imported in them only."""

import hashlib
import http.client
import shutil
import ssl
import tarfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from tollway_serving.contract.sources import SECRET_ENTRIES, SourceUri
from tollway_serving.engines.protocol import ModelMissingError
from tollway_serving.engines.sources import Unreachable, secret_name

_TIMEOUT = 30.0  # seconds of silence
_PIECE = 1 << 20
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class _Base:
    def __init__(self, source: SourceUri, entries: Mapping[str, str], secret: str | None) -> None:
        self.source = source
        self.entries = entries
        self.secret = secret

    @property
    def key(self) -> str:
        """The folder of all its versions."""
        digest = hashlib.sha256(self.source.address.encode()).hexdigest()[:16]
        return f"{self.source.scheme}-{digest}"

    def missing(self, why: str) -> ModelMissingError:
        return ModelMissingError(f"{self.source.address}: {why}")

    def denied(self, status: int | str) -> ModelMissingError:
        """Which entry of which Secret would help."""
        names = " and ".join(SECRET_ENTRIES[self.source.scheme])
        if self.secret is None:
            advice = f"make a Secret with {names} in the model's namespace and name it in spec.source.secretRef"
        elif any(name not in self.entries for name in SECRET_ENTRIES[self.source.scheme]):
            advice = f"Secret {secret_name(self.secret)} needs {names}"
        else:
            advice = f"{names} of Secret {secret_name(self.secret)} gives no right to it"
        return self.missing(f"access denied ({status}); {advice}")


class Hub(_Base):
    """A repository of the Hugging Face hub, or of a mirror (HF_ENDPOINT). Its library keeps, shares and resumes files
    by their hashes; a version here is a folder with a link to its snapshot."""

    def __init__(self, source: SourceUri, entries: Mapping[str, str], secret: str | None) -> None:
        super().__init__(source, entries, secret)
        try:
            import huggingface_hub
            from huggingface_hub import utils
        except ModuleNotFoundError:
            raise self.missing("huggingface_hub is not installed here; install tollway[sources]") from None
        self._hub: Any = huggingface_hub
        utils.disable_progress_bars()  # `sources` writes lines into the log
        self._endpoint = entries.get("HF_ENDPOINT")  # None: the environment's, or the hub itself
        self._token = entries.get("HF_TOKEN")

    def version(self) -> str:
        def ask() -> str:
            api = self._hub.HfApi(endpoint=self._endpoint, token=self._token)
            return str(api.model_info(self.source.place, revision=self.source.revision, timeout=_TIMEOUT).sha)

        self._commit = self._translated(ask)
        return self._commit

    def load(self, folder: Path) -> None:
        path = self.source.path
        patterns = [path, f"{path}/*"] if path else None

        def download() -> str:
            # Beside the versions: what two of them have in common is there once.
            return str(
                self._hub.snapshot_download(
                    self.source.place,
                    revision=self._commit,
                    cache_dir=str(folder.parent / "hub"),
                    endpoint=self._endpoint,
                    token=self._token,
                    allow_patterns=patterns,
                )
            )

        snapshot = Path(self._translated(download))
        if path and not (snapshot / path).exists():
            raise self.missing(f"the repository has no {path} at {self._commit[:12]}")
        link = folder / "snapshot"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..") / snapshot.relative_to(folder.parent))

    def found(self, folder: Path) -> Path:
        return (folder / "snapshot").resolve() / self.source.path

    def _translated(self, work: Any) -> str:
        from huggingface_hub import errors

        try:
            return str(work())
        except errors.RevisionNotFoundError:
            raise self.missing(f"the repository has no revision {self.source.revision}") from None
        except errors.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status in (401, 403):  # of a repository that isn't there the hub says 401 to strangers
                raise self.denied(status) from None
            if status == 404:
                raise self.missing("there is no such repository") from None
            raise Unreachable(f"the hub answers {status}") from error
        except (errors.HTTPError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk
            raise Unreachable(f"the hub gives no answer ({type(error).__name__})") from error


class S3(_Base):
    """An object, or all objects below KEY/, of S3 or what speaks like it (AWS_ENDPOINT_URL)."""

    def __init__(self, source: SourceUri, entries: Mapping[str, str], secret: str | None) -> None:
        super().__init__(source, entries, secret)
        try:
            import boto3
            import botocore.config
        except ModuleNotFoundError:
            raise self.missing("boto3 is not installed here; install tollway[sources]") from None
        session = boto3.Session(
            aws_access_key_id=entries.get("AWS_ACCESS_KEY_ID"),
            aws_secret_access_key=entries.get("AWS_SECRET_ACCESS_KEY"),
            aws_session_token=entries.get("AWS_SESSION_TOKEN"),
            region_name=entries.get("AWS_REGION") or entries.get("AWS_DEFAULT_REGION"),
        )
        options: dict[str, Any] = {
            "connect_timeout": _TIMEOUT,
            "read_timeout": _TIMEOUT,
            "retries": {"total_max_attempts": 4},
        }
        if session.get_credentials() is None:  # a public bucket
            options["signature_version"] = botocore.UNSIGNED
        self._client: Any = session.client(
            "s3", endpoint_url=entries.get("AWS_ENDPOINT_URL"), config=botocore.config.Config(**options)
        )

    def version(self) -> str:
        self._objects: dict[str, tuple[str, int]] = self._translated(self._list)  # key: where in the folder, size
        return self._version

    def _list(self) -> dict[str, tuple[str, int]]:
        bucket, key = self.source.place, self.source.path
        found: dict[str, tuple[str, int]] = {}
        marks = []
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key):
            for item in page.get("Contents") or ():
                name, size = str(item["Key"]), int(item["Size"])
                if name == key:
                    inside = PurePosixPath(name).name
                elif name.startswith(f"{key}/") and not name.endswith("/"):
                    inside = name.removeprefix(f"{key}/")
                else:
                    continue
                if ".." in inside.split("/"):
                    raise self.missing(f"the object {name} has .. in its name")
                found[name] = (inside, size)
                marks.append(f"{name} {item['ETag']} {size}")
        if key in found:  # the object itself, although others begin like it
            marks = [mark for mark in marks if mark.startswith(f"{key} ")]
            found = {key: found[key]}
        if not found:
            raise self.missing(f"the bucket has nothing there: neither an object {key} nor any below {key}/")
        self._version = hashlib.sha256("\n".join(sorted(marks)).encode()).hexdigest()[:32]
        return found

    def load(self, folder: Path) -> None:
        for name, (inside, size) in self._objects.items():
            target = folder / "files" / inside
            if target.is_file() and target.stat().st_size == size:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            # (in parallel pieces, under another name until it is whole)
            self._translated(lambda n=name, t=target: self._client.download_file(self.source.place, n, str(t)))

    def found(self, folder: Path) -> Path:
        files = folder / "files"
        one = files / PurePosixPath(self.source.path).name
        return one if one.is_file() and len(list(files.iterdir())) == 1 else files

    def _translated(self, work: Any) -> Any:
        from botocore import exceptions

        try:
            return work()
        except exceptions.ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = error.response.get("Error", {}).get("Code")
            if status in (401, 403):
                raise self.denied(str(code)) from None
            if code == "NoSuchBucket":
                raise self.missing(f"there is no bucket {self.source.place}") from None
            if status == 404:
                raise self.missing("the object is gone") from None
            raise Unreachable(f"the store answers {code}") from error
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
            raise self.denied("no credentials") from None
        except (exceptions.HTTPClientError, exceptions.ConnectionError) as error:
            raise Unreachable(f"the store gives no answer ({type(error).__name__})") from error
        except exceptions.BotoCoreError as error:
            raise self.missing(str(error)) from None


class Https(_Base):
    """One file. A tar archive is unpacked: it stands for the folder in it."""

    @property
    def key(self) -> str:
        return f"sha256-{self.source.sha256}" if self.source.sha256 else super().key

    def version(self) -> str:
        if self.source.sha256:
            return self.source.sha256
        with self._open(0) as answer:  # (not HEAD: signed addresses refuse it)
            marks = [answer.headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Length")]
        return hashlib.sha256("\n".join(marks).encode()).hexdigest()[:32]

    def load(self, folder: Path) -> None:
        part = folder / ".part"
        self._download(part)
        if self.source.sha256:
            with part.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != self.source.sha256:
                part.unlink()
                raise self.missing(f"the file has sha256 {digest}, not the one after #; correct it, or the file")
        name = self._name()
        if not name.endswith(_ARCHIVES):
            part.rename(folder / name)
            return
        unpacked = folder / "files"
        shutil.rmtree(unpacked, ignore_errors=True)
        try:
            with tarfile.open(part) as archive:
                archive.extractall(unpacked, filter="data")
        except tarfile.TarError as error:
            part.unlink()
            raise self.missing(f"the archive can't be unpacked: {error}") from None
        part.unlink()

    def found(self, folder: Path) -> Path:
        if not self._name().endswith(_ARCHIVES):
            return folder / self._name()
        inside = list((folder / "files").iterdir())
        return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder / "files"

    def _name(self) -> str:
        return PurePosixPath(unquote(urlsplit(self.source.address).path)).name or "file"

    def _download(self, part: Path) -> None:
        """Into the file, from where an attempt before ended if the server can."""
        while True:
            have = part.stat().st_size if part.exists() else 0
            try:
                with self._open(have) as answer, part.open("ab" if answer.status == 206 else "wb") as file:
                    expected = answer.headers.get("Content-Length")
                    begun = file.tell()
                    while piece := answer.read(_PIECE):
                        file.write(piece)
                    short = expected is not None and file.tell() - begun < int(expected)
            except (TimeoutError, http.client.HTTPException, ConnectionError, ssl.SSLError) as error:
                if part.exists() and part.stat().st_size > have:
                    continue  # some of it came: go on
                raise Unreachable(f"the server broke off ({type(error).__name__})") from error
            if not short:
                return
            if part.stat().st_size <= have:
                raise Unreachable("the server broke off")

    def _open(self, start: int) -> Any:
        request = urllib.request.Request(self.source.address)  # noqa: S310 - https only, by its pattern
        if start:
            request.add_header("Range", f"bytes={start}-")
        if "AUTHORIZATION" in self.entries:  # never to where a redirect leads
            request.add_unredirected_header("Authorization", self.entries["AUTHORIZATION"])
        try:
            return urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403):
                raise self.denied(error.code) from None
            if error.code in (404, 410):
                raise self.missing(f"the server has no such file ({error.code})") from None
            if error.code == 416 and start:  # all of it was there already, or the file is another one now
                return _Whole()
            raise Unreachable(f"the server answers {error.code}") from None
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise Unreachable(f"the server gives no answer ({reason})") from error


class _Whole:
    """The answer to a range that begins at the file's end: nothing more."""

    status = 206
    headers: Mapping[str, str] = {}

    def __enter__(self) -> "_Whole":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, _: int) -> bytes:
        return b""


def loader(source: SourceUri, entries: Mapping[str, str], secret: str | None) -> Hub | S3 | Https:
    match source.scheme:
        case "hf":
            return Hub(source, entries, secret)
        case "s3":
            return S3(source, entries, secret)
        case _:
            return Https(source, entries, secret)
