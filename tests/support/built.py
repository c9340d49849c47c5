"""Objects as the API server gives them, through the pure builders: for tests of those."""

from typing import Any

from support.ports import MemoryObjects

from tollway_operator.builders.desired import Desired, build
from tollway_operator.builders.views import KeyView, ModelView, PlanView
from tollway_operator.keys import KEY_FIELD, OWNER_LABEL, describe
from tollway_operator.observed import Observed, Parser
from tollway_operator.ports import SecretView, Snapshot
from tollway_operator.settings import Settings
from tollway_serving.contract.catalogue import Catalogue

EMBEDDED = Settings(base_url="http://localhost/v1", embedded=True)
CLUSTER = Settings(base_url="http://localhost/v1")
NOW = 1_800_000_000


class Objects(MemoryObjects):
    def secret_view(self, name: str, value: str, owner: str | None = None) -> SecretView:
        uid = self.objects["ApiKey", "ml", owner].uid if owner else None
        labels = {OWNER_LABEL: owner} if owner else {}
        return SecretView("ml", name, f"uid-{name}", labels, uid, NOW - 100, {KEY_FIELD: describe(value)})

    def built(self, settings: Settings = EMBEDDED, secrets: tuple[SecretView, ...] = (), **observed: Any) -> Desired:
        views = {(view.namespace, view.name): view for view in secrets}
        found = Parser().parse(Snapshot(tuple(self.objects.values()), views, {}))
        fields: dict[str, Any] = {"published": Catalogue(), "secrets": views, **observed}
        return build(
            Observed(
                now=NOW,
                models=found["ModelDeployment"],
                plans=found["Plan"],
                keys=found["ApiKey"],
                **fields,
            ),
            settings,
        )


def model(desired: Desired, name: str) -> ModelView:
    return next(view for view in desired.views.models if view.parsed.raw.name == name)


def plan(desired: Desired, name: str = "pro") -> PlanView:
    return next(view for view in desired.views.plans if view.parsed.raw.name == name)


def key(desired: Desired, name: str = "ci") -> KeyView:
    return next(view for view in desired.views.keys if view.parsed.raw.name == name)


def reason(view: ModelView | PlanView | KeyView) -> str | None:
    return view.refused.reason if view.refused else None
