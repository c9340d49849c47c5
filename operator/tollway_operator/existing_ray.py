"""The platform where somebody else runs the Ray cluster: its pods are what they are. Chosen by `main`."""

from collections.abc import Sequence

from tollway_operator.builders.pools import Demand
from tollway_operator.platform import PlatformStatus
from tollway_operator.serve_api import ServeApi


class ExistingRay(ServeApi):
    async def shape(self, demands: Sequence[Demand]) -> PlatformStatus:
        return PlatformStatus()
