"""Files are edited while `tollway up` runs: it counts within seconds, nobody else notices, and a stream that began
before everything is still running three minutes later.

The tests run in this order, beside one long stream and one poller of another model that must never fail. Serve's
HAProxy is reloaded by every change, and by default would cut the stream two minutes after the first.
"""

import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from support.up import Up, eventually, key, model

pytestmark = pytest.mark.timeout(600)
STREAM_S = 185.0
CONTEXT = "limits: {contextTokens: 8192, outputTokens: 8000}"


class LongStream(threading.Thread):
    """Reads one answer for minutes: four choices of a model that must not end (its end token is forbidden)."""

    def __init__(self, up: Up) -> None:
        super().__init__(daemon=True)
        self.up = up
        self.begun = 0.0
        self.last = 0.0
        self.longest_pause = 0.0
        self.ended: str | None = None
        self.leave = threading.Event()
        self.flowing = threading.Event()

    def run(self) -> None:
        try:
            self._read()
        except Exception as error:
            self.ended = f"{type(error).__name__}: {error}"
            self.flowing.set()

    def _read(self) -> None:
        request: dict[str, Any] = {
            "model": "long",
            "messages": [{"role": "user", "content": "Tell a long story."}],
            "max_tokens": 7900,
            "n": 4,
            "logit_bias": {"0": -100, "2": -100},
            "stream": True,
        }
        with openai.OpenAI(api_key=self.up.key, base_url=f"{self.up.root}/v1", max_retries=0) as client:
            for _chunk in client.chat.completions.create(**request):
                now = time.monotonic()
                if not self.begun:
                    self.begun = self.last = now
                    self.flowing.set()
                self.longest_pause = max(self.longest_pause, now - self.last)
                self.last = now
                if self.leave.is_set():
                    return
        self.ended = "[DONE]"


class Poller(threading.Thread):
    """Asks a model that nobody touches, again and again; whatever is not a 200 is kept."""

    def __init__(self, up: Up) -> None:
        super().__init__(daemon=True)
        self.up = up
        self.stop = threading.Event()
        self.answers = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.stop.wait(0.3):
            try:
                answer = self.up.chat("small", text="hi", max_tokens=1)
                self.answers += 1
                if answer.status != 200:
                    self.failures.append(f"{answer.status} {answer.body.decode()}")
            except OSError as error:
                self.failures.append(repr(error))


@pytest.fixture(scope="module")
def stream(platform: Up) -> Iterator[LongStream]:
    platform.write("long.yaml", model("long", more=CONTEXT))
    eventually(lambda: platform.chat("long", max_tokens=1).status == 200)
    stream = LongStream(platform)
    stream.start()
    assert stream.flowing.wait(60)
    yield stream
    stream.leave.set()
    stream.join(60)


@pytest.fixture(scope="module")
def poller(platform: Up, stream: LongStream) -> Iterator[Poller]:
    poller = Poller(platform)
    poller.start()
    yield poller
    poller.stop.set()
    poller.join(60)


@pytest.fixture(autouse=True)
def nobody_noticed(stream: LongStream, poller: Poller) -> Iterator[None]:
    yield
    assert stream.ended is None
    assert poller.failures == []


def test_a_new_key_works_within_seconds_and_a_deleted_one_stops_within_seconds(platform: Up) -> None:
    platform.write("second.yaml", key("second"))
    file = platform.state / "secrets" / "default" / "second" / "OPENAI_API_KEY"
    assert eventually(lambda: platform.models(file.read_text().strip()) != []) < 30
    secret = file.read_text().strip()
    platform.remove("second.yaml")
    assert eventually(lambda: platform.call("GET", "/v1/models", secret=secret).status == 401) < 30
    assert not file.exists()


def test_a_new_model_appears(platform: Up) -> None:
    platform.write("third.yaml", model("third"))
    eventually(lambda: platform.chat("third").status == 200)
    assert "third" in platform.models()


def test_an_edit_is_applied(platform: Up) -> None:
    platform.write("third.yaml", model("third", more="aliases: [number-three]"))
    eventually(lambda: platform.chat("number-three").status == 200)


def test_a_new_version_replaces_the_old_one_without_a_gap(platform: Up) -> None:
    platform.write("third.yaml", model("third", more="limits: {contextTokens: 1024}"))
    long = "word " * 1500

    def new_version_answers() -> bool:
        answer = platform.chat("third", text=long)
        assert answer.status in (200, 400)  # the old one takes it, the new one does not; neither is ever away
        return answer.status == 400

    eventually(new_version_answers)
    assert platform.chat("third").status == 200


def test_a_broken_file_changes_nothing_and_is_told(platform: Up) -> None:
    platform.write("third.yaml", "kind: [ModelDeployment\n")
    eventually(lambda: "third.yaml" in platform.said)
    assert platform.chat("third").status == 200
    platform.write("third.yaml", model("third", more="limits: {contextTokens: 1024}"))


def test_a_version_that_cannot_start_leaves_the_last_good_one_serving_and_says_why(platform: Up) -> None:
    platform.write("third.yaml", model("third", uri="package://tollway-no-such-weights"))

    def told() -> bool:
        assert platform.chat("third").status == 200
        return "tollway-no-such-weights" in str(platform.status("ModelDeployment", "third"))

    eventually(told, timeout=180)
    platform.write("third.yaml", model("third"))
    eventually(lambda: platform.status("ModelDeployment", "third")["Degraded"].startswith("False AsExpected"))
    assert platform.chat("third").status == 200


def test_a_deleted_model_goes(platform: Up) -> None:
    platform.remove("third.yaml")
    eventually(lambda: platform.chat("third").status == 404)
    assert platform.chat("third").error == "model_not_found"
    assert "third" not in platform.models()


def test_the_stream_has_run_for_three_minutes(platform: Up, stream: LongStream, poller: Poller) -> None:
    """Models come and go until then, so that HAProxy is reloaded early and late."""
    number = 0
    while time.monotonic() < stream.begun + STREAM_S:
        assert stream.ended is None
        number += 1
        platform.write("passing.yaml", model(f"passing-{number}"))
        eventually(lambda name=f"passing-{number}": platform.chat(name).status == 200)  # type: ignore[misc]
        platform.remove("passing.yaml")
        eventually(lambda name=f"passing-{number}": platform.chat(name).status == 404)  # type: ignore[misc]
    assert stream.last - stream.begun > STREAM_S - stream.longest_pause - 1
    assert time.monotonic() - stream.last < 10
    assert poller.answers > 50
