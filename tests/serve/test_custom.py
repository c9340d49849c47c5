"""`engine: custom`: an application of a user's own, behind the gateway in real Ray Serve."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.up import PLAN, Up, eventually, key

TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("custom"))
    up.write("plan.yaml", PLAN)
    up.write("key.yaml", key("me"))
    up.write(
        "mine.yaml",
        """
        apiVersion: tollway.dev/v1alpha1
        kind: ModelDeployment
        metadata: {name: mine}
        spec:
          engine: {name: custom, args: {import-path: "support.custom_app:make", greeting: Good day}}
          limits: {contextTokens: 1000}
          pricing: {perMillionOutputTokens: 1000000}
        """,
    )
    up.start(env={"PYTHONPATH": str(TESTS)})
    try:
        yield up.ready()
    finally:
        up.end()


def test_a_users_application_answers_and_is_charged(custom: Up) -> None:
    eventually(lambda: custom.chat("mine").status == 200)
    answer = custom.chat("mine", text="you")
    assert answer.json()["choices"][0]["message"]["content"] == "Good day you"
    assert answer.header("x-credits-used") == ["2"]
    too_long = custom.chat("mine", text="a" * 1001)
    assert (too_long.status, too_long.error) == (400, "context_length_exceeded")
    stream = custom.chat("mine", text="one two", stream=True)
    frames = [line for line in stream.body.decode().split("\n\n") if line.startswith("data: {")]
    deltas = [choice["delta"] for frame in frames for choice in json.loads(frame[6:])["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "onetwo"


def test_code_that_cannot_be_imported_is_named(custom: Up) -> None:
    custom.write(
        "gone.yaml",
        """
        apiVersion: tollway.dev/v1alpha1
        kind: ModelDeployment
        metadata: {name: gone}
        spec: {engine: {name: custom, args: {import-path: "no_such_module:app"}}}
        """,
    )
    eventually(lambda: "no_such_module:app can't be imported" in custom.status("ModelDeployment", "gone")["Ready"])
