"""Pure checks: from what was observed, wanted and carried out to each object's status. Called by `reconcile`."""

from tollway_operator.status.conditions import Judgement, Outcome, Reach
from tollway_operator.status.judge import judge

__all__ = ["Judgement", "Outcome", "Reach", "judge"]
