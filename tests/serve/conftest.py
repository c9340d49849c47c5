"""One `tollway up` for all tests here that only talk to it: real Ray Serve, HAProxy, SQLite and a real model."""

from collections.abc import Iterator

import pytest
from support.up import PLAN, Up, key, model


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("up"))
    up.write("plan.yaml", PLAN)
    up.write("key.yaml", key("me"))
    up.write("small.yaml", model("small"))
    up.start()
    try:
        yield up.ready()
    finally:
        up.end()
