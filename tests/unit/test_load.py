"""What the loader makes of files, and what it says of bad ones."""

from pathlib import Path

import pytest

from tollway_operator.resources import Plan
from tollway_operator.resources.load import Files, load, load_text
from tollway_operator.resources.yaml_nodes import documents


def problems(found: Files) -> list[str]:
    return [str(problem) for problem in found.problems]


PLAN_HEAD = "apiVersion: tollway.dev/v1alpha1\nkind: Plan\nmetadata: {name: p, namespace: ml}\n"


def test_errors_name_file_line_object_and_field() -> None:
    text = PLAN_HEAD + (
        "spec:\n"
        "  quotas:\n"
        "  - name: chat\n"
        "    meter: Tokens\n"
        "    limit: 1.5\n"
        "  - name: more\n"
        "    metre: Tokens\n"
        "    limit: 1\n"
        "  credits:\n"
        "    monthly: 0.15\n"
    )
    assert problems(load_text(text, "a.yaml")) == [
        'a.yaml:8: Plan ml/p: spec.quotas[0].limit: must be of type integer: "number"',
        "a.yaml:9: Plan ml/p: spec.quotas[1].meter: Required value",
        "a.yaml:10: Plan ml/p: spec.quotas[1].metre: unknown field; did you mean meter?",
        'a.yaml:13: Plan ml/p: spec.credits.monthly: must be of type integer,string: "number"',
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3: the key a is there twice"),
        (PLAN_HEAD + "spec: {limits: {storage: 1, storage: 2}}", "f:4: the key storage is there twice"),
        ("a: [1", "f:1: not YAML: did not find expected ',' or ']'"),
        ("a:\n\t- 1", "f:2: not YAML: found character that cannot start any token"),
        ("a: b: c", "f:1: not YAML: mapping values are not allowed in this context"),
        ("a: \x01", "f:1: not YAML: control characters are not allowed"),
        ("a: *b", "f:1: not YAML: found undefined alias"),
        ("a: &a [*a]", "f:1: an alias is part of itself"),
        ("a: !!python/name:os.system ''", "f:1: the tag tag:yaml.org,2002:python/name:os.system is not for"),
        ("? [1]\n: 2", "f:1: a key must be a word"),
        ("[" * 200 + "]" * 200, "f:1: nested more than 64 deep"),
        ("[" * 100_000, "f:1: not YAML: exceeded maximum nesting depth"),
        ("plain", 'f:1: must be an object with apiVersion, kind, metadata and spec, not "string"'),
        ("- 1", 'f:1: must be an object with apiVersion, kind, metadata and spec, not "array"'),
        ("apiVersion: v1", "f:1: kind: Required value"),
        ("kind: Pod\napiVersion: v1", "f:1: kind: no kind of Tollway's: Pod; there are ModelDeployment, Plan, ApiKey"),
        ("kind: Plan\napiVersion: v1", "f:2: apiVersion: write apiVersion: tollway.dev/v1alpha1"),
        ("kind: Plan\napiVersion: tollway.dev/v1alpha1", "f:1: Plan: metadata: Required value"),
        (PLAN_HEAD + "specs: {}", "f:4: Plan: specs: unknown field"),
        (PLAN_HEAD.replace("name: p", "nam: p"), "f:3: Plan: metadata.nam: unknown field"),
        (PLAN_HEAD.replace("name: p,", ""), "f:3: Plan: metadata.name: Required value"),
        (PLAN_HEAD.replace("name: p", "generateName: p"), "f:3: Plan: metadata.generateName: write a name"),
        (PLAN_HEAD.replace("name: p", "name: P"), "f:3: Plan: metadata.name: a name has lower-case letters"),
        (PLAN_HEAD.replace(": ml", ": m.l"), "f:3: Plan: metadata.namespace: a namespace has lower-case letters"),
        (
            PLAN_HEAD.replace("name: p", "name: " + "p" * 64),
            f"f:1: Plan ml/{'p' * 64}: a name has at most 63 characters",
        ),
        (
            PLAN_HEAD.replace("}", ", labels: {a: yes}}"),
            'f:3: Plan: metadata.labels.a: must be of type string: "boolean"',
        ),
        (PLAN_HEAD + "---\n" + PLAN_HEAD, "f:7: Plan ml/p: metadata.name: this object is in f:1 already"),
        ("kind: List\napiVersion: v1\nitems:\n- kind: Foo", "f:4: kind: no kind of Tollway's: Foo"),
    ],
)
def test_bad_files(text: str, problem: str) -> None:
    found = problems(load_text(text, "f"))
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert problems(load_text("\n".join(lines), "f")) == ["f:1: more than 1000000 values in one file"]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("010", 8), ("0o17", 15), ("0x1F", 31), ("0b11", 3), ("1_000", 1000), ("08", 8), ("1e3", 1000), ("2.0", 2),
        ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("'5'", "5"), ("yes", True), ("n", False),
        ("!!str 5", "5"), ("~", None), ("+5", 5), (".5", 0.5), ("", None),
    ],
)  # fmt: skip
def test_scalars_are_kubectls(written: str, value: object) -> None:
    """Each was given to kubectl 1.36 too."""
    (node,) = documents(f"a: {written}\n")
    assert node.value == {"a": value}
    assert type(node.value["a"]) is type(value)


def test_anchors_merges_json_and_lists_work() -> None:
    text = (
        "apiVersion: v1\nkind: List\nitems:\n"
        "- &one {apiVersion: tollway.dev/v1alpha1, kind: Plan, metadata: {name: a}, spec: &s {tier: Free}}\n"
        "- <<: *one\n  metadata: {name: b}\n"
        '---\n{"apiVersion": "tollway.dev/v1alpha1",\t"kind": "Plan", "metadata": {"name": "c"}, "status": {"keys": 1}}'
    )
    found = load_text(text, "f")
    assert not found.problems
    assert [(one.resource.name, one.line) for one in found.resources] == [("a", 4), ("b", 5), ("c", 8)]
    assert [one.resource.spec.tier for one in found.resources if isinstance(one.resource, Plan)] == [
        "Free",
        "Free",
        "Paid",
    ]


def test_good_documents_count_beside_bad_ones() -> None:
    found = load_text(
        PLAN_HEAD + "---\n" + PLAN_HEAD.replace("name: p", "name: q") + "spec: {tier: x}\n---\n- [\n", "f"
    )
    assert [one.resource.full_name for one in found.resources] == ["ml/p"]
    assert [problem.line for problem in found.problems] == [8, 10]


def test_secrets() -> None:
    text = (
        "apiVersion: v1\nkind: Secret\nmetadata: {name: p, labels: {tollway.dev/watch: 'true'}}\ntype: Opaque\n"
        "data: {a: aGVsbG8=, b: aGVsbG8=}\nstringData: {b: plain-text}\n"
    )
    found = load_text(text, "f")
    assert not found.problems
    (secret,) = found.secrets
    assert (secret.namespace, secret.name, secret.labels) == ("default", "p", {"tollway.dev/watch": "true"})
    assert secret.values == {"a": b"hello", "b": b"plain-text"}
    assert "plain-text" not in repr(secret)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ("data: {a: hunter2!}", "f:4: Secret default/p: data.a: not base64; plain text goes into stringData"),
        ("stringData: {a: 12345678}", 'f:4: Secret default/p: stringData.a: must be of type string: "integer"'),
        ("stringData: {a b: hunter2}", "f:4: Secret default/p: stringData.a b: a Secret's key has letters"),
        ("spec: {}", "f:4: Secret: spec: unknown field"),
    ],
)
def test_bad_secrets_keep_their_values(entries: str, problem: str) -> None:
    (found,) = problems(load_text(f"apiVersion: v1\nkind: Secret\nmetadata: {{name: p}}\n{entries}\n", "f"))
    assert found.startswith(problem)
    assert "hunter2" not in found
    assert "12345678" not in found


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    written = {
        "a.yaml": "a", "b/b.yml": "b", "b/c/c.json": "c", "notes.txt": "not read",
        ".git/x.yaml": "- [", "b/.b.yaml": "- [",
    }  # fmt: skip
    for file, name in written.items():
        text = name if name.startswith(("not", "-")) else PLAN_HEAD.replace("name: p", f"name: {name}")
        (tmp_path / file).write_text(text)
    (tmp_path / "empty.yaml").write_text("# nothing\n---\n")
    found = load([tmp_path, tmp_path / "a.yaml"])  # the same file twice counts once
    assert not found.problems
    assert [one.resource.name for one in found.resources] == ["a", "b", "c"]
    assert found.resources[0].file == str(tmp_path / "a.yaml")


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere")
    with (tmp_path / "huge.yaml").open("wb") as huge:
        huge.truncate(16 * 1024 * 1024 + 1)
    found = load([tmp_path, tmp_path / "empty", tmp_path / "missing"])
    assert problems(found) == [
        f"{tmp_path}/gone.yaml: can't be read: No such file or directory",
        f"{tmp_path}/huge.yaml: larger than 16 MiB",
        f"{tmp_path}/latin.yaml:2: not UTF-8 text",
        f"{tmp_path}/empty: no *.yaml, *.yml, *.json in this folder",
        f"{tmp_path}/missing: not there",
    ]


def test_an_object_in_two_files_is_said(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(PLAN_HEAD)
    found = load([tmp_path])
    assert len(found.resources) == 1
    assert problems(found) == [
        f"{tmp_path}/b.yaml:3: Plan ml/p: metadata.name: this object is in {tmp_path}/a.yaml:1 already"
    ]
