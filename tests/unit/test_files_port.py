"""The files port: real files in a temporary folder."""

import asyncio
import json
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tollway_operator.errors import Gone, NotOurs, Refused
from tollway_operator.files import FilesObjects, environment_name
from tollway_operator.keys import KEY_FIELD, OWNER_LABEL, URL_FIELD, describe, is_generated
from tollway_operator.ports import Raw

URL = "http://127.0.0.1:8000/v1"


def document(kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> str:
    head = {"apiVersion": "tollway.dev/v1alpha1", "kind": kind, "metadata": {"name": name, **metadata}}
    return yaml.safe_dump({**head, "spec": spec}, sort_keys=False)


def plan(name: str = "pro", **spec: Any) -> str:
    return document("Plan", name, spec)


def key(name: str = "ci", **spec: Any) -> str:
    return document("ApiKey", name, {"planRef": {"name": "pro"}, **spec})


@pytest.fixture
def yamls(tmp_path: Path) -> Path:
    folder = tmp_path / "yamls"
    folder.mkdir()
    (folder / "plan.yaml").write_text(plan())
    (folder / "key.yaml").write_text(key())
    return folder


@asynccontextmanager
async def opened(paths: Path | list[Path], state: Path) -> AsyncIterator[FilesObjects]:
    objects = FilesObjects(paths if isinstance(paths, list) else [paths], state)
    await objects.start()
    try:
        yield objects
    finally:
        await objects.close()


async def find(objects: FilesObjects, kind: str, name: str) -> Raw | None:
    return next((raw for raw in (await objects.snapshot()).objects if (raw.kind, raw.name) == (kind, name)), None)


async def raw(objects: FilesObjects, kind: str, name: str) -> Raw:
    found = await find(objects, kind, name)
    assert found is not None
    return found


async def until(objects: FilesObjects, check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await check():
            objects.changed.clear()
            if not await check():
                await objects.changed.wait()


async def test_start_gives_objects_with_identities_that_last(yamls: Path, tmp_path: Path) -> None:
    async with opened(yamls, tmp_path / "state") as objects:
        assert objects.changed.is_set()
        first = await raw(objects, "ApiKey", "ci")
        assert (first.namespace, first.generation) == ("default", 1)
        assert first.spec["state"] == "Active", "defaults are filled in"
    async with opened(yamls, tmp_path / "state") as objects:
        again = await raw(objects, "ApiKey", "ci")
        assert (again.uid, again.created, again.generation) == (first.uid, first.created, 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("kind: [", "key.yaml"),
        (key(state="Paused"), "Unsupported value"),
        (key() + "---\n" + key(), "already"),
    ],
)
async def test_a_broken_file_at_the_start_is_one_clear_line(
    yamls: Path, tmp_path: Path, content: str, said: str
) -> None:
    (yamls / "key.yaml").write_text(content)
    with pytest.raises(Refused, match=said) as caught:
        await FilesObjects([yamls], tmp_path / "state").start()
    assert "\n" not in str(caught.value)
    with pytest.raises(Refused, match="not there"):
        await FilesObjects([tmp_path / "nowhere.yaml"], tmp_path / "state").start()


async def test_edits_additions_and_deletions_are_seen(yamls: Path, tmp_path: Path) -> None:
    async with opened(yamls, tmp_path / "state") as objects:
        before = await raw(objects, "ApiKey", "ci")
        (yamls / "key.yaml").write_text(key(state="Suspended"))

        async def suspended() -> bool:
            return (await raw(objects, "ApiKey", "ci")).spec["state"] == "Suspended"

        await until(objects, suspended)
        after = await raw(objects, "ApiKey", "ci")
        assert (after.uid, after.generation) == (before.uid, 2)

        (yamls / "more").mkdir()
        (yamls / "more" / "second.yml").write_text(key("second"))

        async def added() -> bool:
            return await find(objects, "ApiKey", "second") is not None

        await until(objects, added)
        (yamls / "key.yaml").unlink()

        async def gone() -> bool:
            return await find(objects, "ApiKey", "ci") is None

        await until(objects, gone)
        (yamls / "key.yaml").write_text(key())

        async def back() -> bool:
            return not await gone()

        await until(objects, back)
        assert (await raw(objects, "ApiKey", "ci")).uid != before.uid, "a re-created object is another one"


async def test_a_file_that_breaks_keeps_what_it_last_said(yamls: Path, tmp_path: Path) -> None:
    async with opened(yamls, tmp_path / "state") as objects:
        (yamls / "key.yaml").write_text(key(state="Paused"))
        (yamls / "plan.yaml").write_text(plan(displayName="Professional"))

        async def renamed() -> bool:
            return (await raw(objects, "Plan", "pro")).spec.get("displayName") == "Professional"

        await until(objects, renamed)
        assert (await raw(objects, "ApiKey", "ci")).spec["state"] == "Active"
        assert len(objects.problems) == 1
        assert "key.yaml" in objects.problems[0]
        (yamls / "key.yaml").write_text(key(state="Suspended"))

        async def cured() -> bool:
            return (await raw(objects, "ApiKey", "ci")).spec["state"] == "Suspended"

        await until(objects, cured)
        assert objects.problems == ()


async def test_what_is_immutable_stays(yamls: Path, tmp_path: Path) -> None:
    def model(model_id: str, owner: str) -> str:
        spec = {"modelId": model_id, "engine": {"name": "llamacpp"}, "info": {"ownedBy": owner}}
        return document("ModelDeployment", "small", spec)

    (yamls / "model.yaml").write_text(model("a", "one"))
    async with opened(yamls, tmp_path / "state") as objects:
        (yamls / "model.yaml").write_text(model("b", "two"))
        (yamls / "plan.yaml").write_text(plan(displayName="Professional"))

        async def renamed() -> bool:
            return (await raw(objects, "Plan", "pro")).spec.get("displayName") == "Professional"

        await until(objects, renamed)
        assert (await raw(objects, "ModelDeployment", "small")).spec["modelId"] == "a"
        assert "modelId can't be changed" in objects.problems[0]


async def test_keys_are_files_of_the_user_alone(yamls: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with opened(yamls, state) as objects:
        owner = await raw(objects, "ApiKey", "ci")
        await objects.ensure_key(owner, "ci", URL)
        file = objects.key_file("default", "ci")
        assert file == state / "secrets" / "default" / "ci" / KEY_FIELD
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        made = file.read_text().strip()
        assert is_generated(made)
        view = (await objects.snapshot()).secrets["default", "ci"]
        assert view.owner_uid == owner.uid
        assert view.labels[OWNER_LABEL] == "ci"
        assert view.values[KEY_FIELD] == describe(made)
        assert view.values[URL_FIELD] == describe(URL)
        await objects.ensure_key(owner, "ci", URL)
        assert file.read_text().strip() == made
        assert made not in (state / "objects.json").read_text()
    async with opened(yamls, state) as objects:
        assert (await objects.snapshot()).secrets["default", "ci"].values[KEY_FIELD] == describe(made)
        await objects.rotate_key(owner, "ci")
        assert objects.key_file("default", "ci").read_text().strip() != made
        uid = (await objects.snapshot()).secrets["default", "ci"].uid
        await objects.delete_key("default", "ci", "another")
        assert file.exists()
        await objects.delete_key("default", "ci", uid)
        assert not file.parent.exists()
        assert ("default", "ci") not in (await objects.snapshot()).secrets


async def test_secrets_of_the_user_are_never_taken(yamls: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    theirs = state / "secrets" / "default" / "ci" / KEY_FIELD
    theirs.parent.mkdir(parents=True)
    theirs.write_text("a-key-that-the-user-put-there\n")
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "written"},
        "stringData": {KEY_FIELD: "x" * 20},
    }
    (yamls / "secret.yaml").write_text(yaml.safe_dump(secret))
    async with opened(yamls, state) as objects:
        owner = await raw(objects, "ApiKey", "ci")
        for name in ("ci", "written"):
            with pytest.raises(NotOurs):
                await objects.ensure_key(owner, name, URL)
        assert theirs.read_text() == "a-key-that-the-user-put-there\n"
        assert (await objects.snapshot()).secrets["default", "ci"].owner_uid is None


async def test_where_a_secret_is_sought(yamls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment_name("my-p.x", KEY_FIELD) == "TOLLWAY_SECRET_MY_P_X_OPENAI_API_KEY"
    state = tmp_path / "state"
    (yamls / "key.yaml").write_text(key(secretRef={"name": "imported"}))
    monkeypatch.setenv("TOLLWAY_SECRET_IMPORTED_OPENAI_API_KEY", "from-the-environment!")

    async def value() -> str:
        async with opened(yamls, state) as objects:
            return (await objects.snapshot()).secrets["default", "imported"].values[KEY_FIELD].sha256

    assert await value() == describe("from-the-environment!").sha256
    file = state / "secrets" / "default" / "imported" / KEY_FIELD
    file.parent.mkdir(parents=True)
    file.write_text("from-the-state-folder\n")
    assert await value() == describe("from-the-state-folder").sha256
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "imported"}, "stringData": {KEY_FIELD: "doc"}}
    (yamls / "secret.yaml").write_text(yaml.safe_dump(secret))
    assert await value() == describe("doc").sha256


async def test_a_change_of_a_secrets_file_is_seen(yamls: Path, tmp_path: Path) -> None:
    async with opened(yamls, tmp_path / "state") as objects:
        owner = await raw(objects, "ApiKey", "ci")
        await objects.ensure_key(owner, "ci", URL)
        objects.key_file("default", "ci").unlink()

        async def lost() -> bool:
            return KEY_FIELD not in (await objects.snapshot()).secrets["default", "ci"].values

        await until(objects, lost)


async def test_providers_keys_are_copied_and_cleared_away(yamls: Path, tmp_path: Path) -> None:
    remote = {"engine": {"name": "remote"}, "remote": {"url": "https://example.com/v1", "secretRef": {"name": "p"}}}
    (yamls / "model.yaml").write_text(document("ModelDeployment", "far", remote))
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "p"}, "stringData": {KEY_FIELD: "sk-provider"}}
    (yamls / "secret.yaml").write_text(yaml.safe_dump(secret))
    folder = tmp_path / "state" / "platform" / "providers"
    async with opened(yamls, tmp_path / "state") as objects:
        await objects.sync_provider_keys({"default.p": ("default", "p", KEY_FIELD), "x": ("default", "p", "none")})
        assert {file.name: file.read_text() for file in folder.iterdir()} == {"default.p": "sk-provider\n"}
        assert stat.S_IMODE((folder / "default.p").stat().st_mode) == 0o600
        await objects.sync_provider_keys({})
        assert list(folder.iterdir()) == []


async def test_what_loaders_read_is_copied_out_of_secrets_and_the_environment(
    yamls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"uri": "hf://org/model", "secretRef": {"name": "hub"}}
    (yamls / "model.yaml").write_text(document("ModelDeployment", "m", {"engine": {"name": "vllm"}, "source": source}))
    monkeypatch.setenv("TOLLWAY_SECRET_HUB_HF_TOKEN", "hf_1")
    folder = tmp_path / "state" / "platform" / "sources"
    async with opened(yamls, tmp_path / "state") as objects:
        assert set((await objects.snapshot()).secrets["default", "hub"].values) == {"HF_TOKEN"}
        await objects.sync_source_keys({"default_hub_HF_TOKEN": ("default", "hub", "HF_TOKEN")})
        assert {file.name: file.read_text() for file in folder.iterdir()} == {"default_hub_HF_TOKEN": "hf_1\n"}


async def test_statuses_and_memory_survive(yamls: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with opened(yamls, state) as objects:
        owner = await raw(objects, "ApiKey", "ci")
        await objects.write_status(owner, {"plan": "default/pro"})
        await objects.remember({"good_gateway": "{}"})
        assert json.loads((state / "status" / "ApiKey" / "default" / "ci.json").read_text()) == {"plan": "default/pro"}
    async with opened(yamls, state) as objects:
        assert (await raw(objects, "ApiKey", "ci")).status == {"plan": "default/pro"}
        assert (await objects.snapshot()).memory == {"good_gateway": "{}"}
        (yamls / "key.yaml").unlink()

        async def gone() -> bool:
            return await find(objects, "ApiKey", "ci") is None

        await until(objects, gone)
        assert not (state / "status" / "ApiKey" / "default" / "ci.json").exists()
        with pytest.raises(Gone):
            await objects.write_status(owner, {})
        with pytest.raises(Gone):
            await objects.ensure_key(owner, "ci", URL)


async def test_a_ruined_state_file_is_named(yamls: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "objects.json").write_text("{")
    with pytest.raises(Refused, match=r"objects\.json can't be read"):
        await FilesObjects([yamls], state).start()
