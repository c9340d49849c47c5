"""Clients of the fault suite: each remembers what it asked for and what arrived, to be held against the books."""

import asyncio
import json
import random
import re
import time
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import aiohttp
from support.gateway import HELLO, key, model, plan

from tollway_serving.contract.catalogue import Catalogue, Limits, Quota, Timeouts

DEADLINE_S = 30 + 30
"""Of a hold: the total timeout of its model, and what the gateway adds to it."""

_GIVEN_UP_S = 60.0
_NETWORK = (aiohttp.ClientError, ConnectionError, TimeoutError)
_TAIL = re.compile(rb'credits_used(?:=|":)([0-9.e-]+)')

ACCOUNTS: dict[str, Limits] = {
    "free": Limits(),
    "tight": Limits(credits_monthly_micro=3_000, requests_per_minute=3_000),
    "many": Limits(concurrent_requests=3, quotas=(Quota(name="day", meter="Tokens", limit=60_000, period="Day"),)),
}
"""By the account's name, which is also its plan's and its key's. "tight" gets top-ups while the suite runs."""

NARROWED = Limits(concurrent_requests=2, tokens_per_minute=100_000)
"""What the key of "many" has beside its plan."""


def secret(account: str) -> str:
    return f"sk-tw-{account:A<43}canary"


def catalogue(backend_url: str) -> Catalogue:
    timeouts = Timeouts(total_ms=int(DEADLINE_S - 30) * 1000)
    return Catalogue(
        models=(model(backend_url, timeouts=timeouts, queued_requests=1000, output_tokens=2048),),
        plans=tuple(plan(name=f"ml/{name}", limits=limits) for name, limits in ACCOUNTS.items()),
        keys=tuple(
            key(
                secret(name),
                key_id=f"ml/{name}",
                uid=f"uid-{name}",
                account=f"ml/{name}",
                plan=f"ml/{name}",
                limits=NARROWED if name == "many" else Limits(),
            )
            for name in ACCOUNTS
        ),
    )


@dataclass(slots=True)
class Sent:
    """One request and its answer, as far as it came. Times are monotonic."""

    request_id: str
    gateway: int
    account: str
    streamed: bool
    sent_at: float
    same_as: str | None = None  # its Idempotency-Key
    status: int = 0  # 0: no answer
    code: str | None = None
    ended_at: float = 0.0
    charge_id: str | None = None
    micro: int | None = None  # of the receipt
    tokens: int = 0  # that arrived
    complete: bool = False
    left: bool = False  # by our own will

    @property
    def answered(self) -> bool:
        return self.status == 200 and self.complete

    @property
    def unavailable(self) -> bool:
        return self.code == "ledger_unavailable"


@dataclass
class Load:
    """All clients. `urls` are the gateways'."""

    urls: list[str]
    seed: int
    sent: list[Sent] = field(default_factory=list)
    ending: bool = False
    healthy_at: list[float] = field(default_factory=list)  # by gateway: when a probe's last good answer was sent for
    _ids: Any = field(default_factory=count)

    async def run(self, clients: int) -> None:
        """Until `ending`; then each finishes what it is at."""
        self.healthy_at = [0.0 for _ in self.urls]
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=_GIVEN_UP_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as tasks:
            for number in range(clients):
                account = ("free", "tight", "many")[number % 3]
                tasks.create_task(self._client(session, account, random.Random(f"{self.seed} {number}")))
            for gateway in range(len(self.urls)):
                tasks.create_task(self._probe(session, gateway))

    async def _client(self, session: aiohttp.ClientSession, account: str, chance: random.Random) -> None:
        while not self.ending:
            kind = chance.random()
            if kind < 0.25:
                await self._repeated(session, account, chance)
                continue
            body: dict[str, Any] = {"messages": HELLO, "max_tokens": 3}
            leaves_after = None
            if kind < 0.75:
                # Long enough that some are cut beyond what their hold covers by itself, and beyond the step after it.
                longest = 1600 if account == "free" and chance.random() < 0.4 else 400
                body |= {"stream": True, "max_tokens": chance.randint(5, longest)}
                if chance.random() < 0.5:
                    body["stream_options"] = {"include_usage": True}
                if chance.random() < 0.1:
                    leaves_after = chance.randint(0, body["max_tokens"])
            sent = await self._ask(session, account, chance.randrange(len(self.urls)), body, leaves_after=leaves_after)
            if sent.status != 200:
                await asyncio.sleep(chance.random() * 0.2)

    async def _repeated(self, session: aiohttp.ClientSession, account: str, chance: random.Random) -> None:
        """With an Idempotency-Key, until there is an answer; now and then once more after it."""
        name = f"order-{next(self._ids)}"
        body = {"messages": HELLO, "max_tokens": 4}
        until = time.monotonic() + _GIVEN_UP_S
        more = chance.random() < 0.2
        while time.monotonic() < until:
            sent = await self._ask(session, account, chance.randrange(len(self.urls)), body, same_as=name)
            if sent.status == 429 or (sent.answered and not more):
                return
            more = more and not sent.answered
            await asyncio.sleep(0.1 + chance.random() * 0.3)

    async def _probe(self, session: aiohttp.ClientSession, gateway: int) -> None:
        body = {"messages": HELLO, "max_tokens": 1}
        while not self.ending:
            sent = await self._ask(session, "free", gateway, body)
            if sent.answered:
                self.healthy_at[gateway] = sent.sent_at
            await asyncio.sleep(0.05)

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        account: str,
        gateway: int,
        body: dict[str, Any],
        *,
        same_as: str | None = None,
        leaves_after: int | None = None,
    ) -> Sent:
        streamed = bool(body.get("stream"))
        sent = Sent(f"r-{self.seed}-{next(self._ids)}", gateway, account, streamed, time.monotonic(), same_as)
        self.sent.append(sent)
        headers = {"authorization": f"Bearer {secret(account)}", "x-request-id": sent.request_id}
        if same_as is not None:
            headers["idempotency-key"] = same_as
        url = f"{self.urls[gateway]}/v1/chat/completions"
        raw = bytearray()
        try:
            async with session.post(url, json=body, headers=headers) as answer:
                sent.status = answer.status
                sent.charge_id = answer.headers.get("x-charge-id")
                if (used := answer.headers.get("x-credits-used")) is not None:
                    sent.micro = round(float(used) * 1e6)
                async for data in answer.content.iter_any():
                    raw += data
                    if leaves_after is not None and raw.count(b'"content":"') >= leaves_after:
                        sent.left = True
                        break
                else:
                    sent.complete = True
        except aiohttp.ClientConnectorError:
            self.sent.remove(sent)  # nobody was there to take it
            await asyncio.sleep(0.1)
        except _NETWORK:
            pass
        sent.ended_at = time.monotonic()
        _read(sent, bytes(raw))
        return sent


def _read(sent: Sent, raw: bytes) -> None:
    """What the answer's bytes say."""
    if sent.status != 200:
        if sent.complete and sent.status:
            sent.code = json.loads(raw)["error"]["code"]
        return
    if not sent.streamed:
        if sent.complete:
            sent.tokens = json.loads(raw)["usage"]["completion_tokens"]
        return
    sent.tokens = raw.count(b'"content":"')
    sent.complete = raw.endswith(b"data: [DONE]\n\n") and b'"error":' not in raw
    if sent.complete and (found := _TAIL.search(raw)) is not None:
        sent.micro = round(float(found[1]) * 1e6)
    if b'"code":"ledger_unavailable"' in raw:
        sent.code = "ledger_unavailable"
