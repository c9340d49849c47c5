"""Files are edited while `tollway up` runs: it counts within seconds, nobody else notices, and a stream that began
before everything is still running three minutes later.

The tests run in this order, beside one long stream and one poller of another model that must never fail. Serve's
HAProxy is reloaded by every change, and by default would cut the stream two minutes after the first.
"""

import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.long_stream import LongStream, Poller
from support.up import Up, eventually, key, model

from tollway_serving.contract.applications import GATEWAY_APP

pytestmark = pytest.mark.timeout(600)
STREAM_S = 185.0


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
    eventually(lambda: platform.status("ModelDeployment", "third")["Progressing"].startswith("False UpToDate"))
    platform.write("third.yaml", model("third", more="aliases: [number-three]"))
    eventually(lambda: platform.chat("number-three").status == 200)
    eventually(lambda: re.search(r"default/third: Ready.* \(as it is written now\)", platform.said))


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
    eventually(lambda: re.search("default/third: RolledBack: .*tollway-no-such-weights", platform.said))
    platform.write("third.yaml", model("third"))
    eventually(lambda: platform.status("ModelDeployment", "third")["Degraded"].startswith("False AsExpected"))
    assert platform.chat("third").status == 200


def test_a_deleted_model_goes(platform: Up) -> None:
    platform.remove("third.yaml")
    eventually(lambda: platform.chat("third").status == 404)
    assert platform.chat("third").error == "model_not_found"
    assert "third" not in platform.models()


def test_a_gateway_that_is_replaced_ends_its_streams_first(platform: Up) -> None:
    """As an upgrade does it. `tollway up` stands still meanwhile; then it puts its own version back: one more."""
    assert platform.process is not None
    before = platform.serve()
    old = gateways(before)
    configs = [app["deployed_app_config"] for app in before["applications"].values()]
    for config in configs:
        if config["name"] == GATEWAY_APP:
            config["args"] = {**config["args"], "max_requests": 1999}
    platform.process.send_signal(signal.SIGSTOP)
    try:
        platform.serve({name: before[name] for name in ("proxy_location", "http_options")} | {"applications": configs})
        eventually(lambda: (new := gateways(platform.serve())) and new.isdisjoint(old))
    finally:
        platform.process.send_signal(signal.SIGCONT)


def gateways(found: dict[str, Any]) -> set[str]:
    """The replicas that take requests."""
    (deployment,) = found["applications"][GATEWAY_APP]["deployments"].values()
    return {replica["replica_id"] for replica in deployment["replicas"] if replica["state"] == "RUNNING"}


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
    stream.leave.set()  # the tests after this one have the machine for themselves
    poller.stop.set()
