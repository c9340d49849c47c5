"""The ledger's properties on its pure part: any order of operations, any limits, a clock that jumps and steps back."""

from hypothesis import settings
from support.ledger_machine import Driver, LedgerMachine, PureDriver


class PureMachine(LedgerMachine):
    def make_driver(self) -> Driver:
        return PureDriver()


TestPure = PureMachine.TestCase
TestPure.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
