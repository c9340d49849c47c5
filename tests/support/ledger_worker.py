"""A gateway's use of the ledger as a process of its own, to be killed: run by tests/ledger/test_processes.py.

Each line on stdout is a fact that a client could hold against us: "covered ID TOKENS" before that many tokens are sent,
"settled ID MICRO" once the receipt is there. Lines are written at once, so that a kill loses none.
"""

import argparse
import asyncio
import os
import random
import time

from support.ledger import ledger, reserve

from tollway_serving.contract.catalogue import Limits
from tollway_serving.ledger.ops import Cover, LedgerUnavailable, Refused, Reserved, Settle
from tollway_serving.ledger.store import Store

ACCOUNTS = 3


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def client(store: Store, owner: str, chance: random.Random, until: float, credits_micro: int) -> None:
    limits = Limits(credits_monthly_micro=credits_micro, concurrent_requests=12)
    while time.monotonic() < until:
        account = chance.choice((0, 0, 0, *range(1, ACCOUNTS)))
        narrow = Limits(concurrent_requests=8) if chance.random() < 0.3 else Limits()
        op = reserve(account, owner=owner, account_limits=limits, key_limits=narrow, output_tokens=200, explicit=False)
        try:
            answer = await store.submit(op)
            if isinstance(answer, Refused):
                say("refused", answer.code)
                if answer.code == "insufficient_quota":
                    return
                await asyncio.sleep(0.002)
                continue
            assert isinstance(answer, Reserved), answer
            used = 0
            while chance.random() < 0.7:
                used = min(used + chance.randint(1, 60), answer.output_tokens)
                await store.submit(Cover(op.charge_id, used, prompt_tokens=7))
                say("covered", op.charge_id, used)
                await asyncio.sleep(chance.random() * 0.01)
            status = chance.choice(("ok", "ok", "ok", "cancelled", "error"))
            receipt = await store.submit(Settle(op.charge_id, {"input_tokens": 7, "output_tokens": used}, status))
            say("settled", op.charge_id, receipt.charged_micro)
        except LedgerUnavailable:
            say("unavailable")
            store.submit(Settle(op.charge_id, {}, "released"))  # the store goes on trying by itself


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("owner")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--credits", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    async with ledger(options.url, options.owner) as store:
        say("ready")
        until = time.monotonic() + options.seconds
        await asyncio.gather(
            *(
                client(store, options.owner, random.Random(f"{options.seed}-{i}"), until, options.credits)
                for i in range(options.clients)
            )
        )


if __name__ == "__main__":
    asyncio.run(main())
