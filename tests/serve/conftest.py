"""One `tollway up` for all tests here that only talk to it: real Ray Serve, HAProxy, SQLite and a real model.

A stream of more than three minutes runs on it. The tests beside that stream come first, then those that start and end
another `tollway up`, then the one that looks at the stream's end; the others have the machine without it.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.long_stream import LongStream, Poller
from support.up import PLAN, Up, eventually, key, model

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Called with the items of all folders: those of this one change places among themselves."""
    places = [place for place, item in enumerate(items) if item.path.parent == _HERE]
    ours = sorted((items[place] for place in places), key=_turn)
    for place, item in zip(places, ours, strict=True):
        items[place] = item


def _turn(item: pytest.Item) -> int:
    if item.name == "test_the_stream_has_run_for_three_minutes":
        return 2
    return {"test_streams_survive.py": 0, "test_life.py": 1, "test_up.py": 3}.get(item.path.name, 4)


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("up"))
    up.write("plan.yaml", PLAN)
    up.write("key.yaml", key("me"))
    up.write("small.yaml", model("small", more="aliases: [smollm2]"))  # the name in the README's examples
    up.start(env={"TOLLWAY_HEARTBEAT_S": "1"})
    try:
        yield up.ready()
    finally:
        up.end()


@pytest.fixture(scope="session")
def stream(platform: Up) -> Iterator[LongStream]:
    platform.write("long.yaml", model("long", more="limits: {contextTokens: 8192, outputTokens: 8000}"))
    eventually(lambda: platform.chat("long", max_tokens=1).status == 200)
    stream = LongStream(platform)
    stream.start()
    assert stream.flowing.wait(60)
    yield stream
    stream.leave.set()
    stream.join(60)


@pytest.fixture(scope="session")
def poller(platform: Up, stream: LongStream) -> Iterator[Poller]:
    poller = Poller(platform)
    poller.start()
    yield poller
    poller.stop.set()
    poller.join(60)
