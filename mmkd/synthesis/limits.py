"""What keeps a client within its means: a budget that is never passed, rates, and a pause that all calls share."""

from __future__ import annotations

import asyncio
import time

from aiolimiter import AsyncLimiter

from mmkd.config.endpoint_schema import BudgetSection, EndpointSection, PriceSection
from mmkd.errors import MmkdError
from mmkd.synthesis.paid import Paid
from mmkd.synthesis.requests import Usage

MINUTE = 60.0
LOOK_AGAIN = 0.02  # seconds, for a budget of which all that is left is reserved


class BudgetSpent(MmkdError):
    """The next call could go over the budget; all that came before is kept."""


class Budget:
    """Tokens and money. A call reserves the most that it can use before it is sent, and gives back what it did not.

    Where what is left does not cover a call, it waits for calls on their way to give back; with none on their way, the
    budget is spent.
    """

    def __init__(self, section: BudgetSection, paid: Paid):
        self.section, self.paid = section, paid
        self._turn = asyncio.Lock()  # who came first is let through first: what is kept is then the beginning of a job

    async def reserve(self, most: Usage) -> None:
        """Raises BudgetSpent."""
        async with self._turn:
            while not self._reserved(most):
                await asyncio.sleep(LOOK_AGAIN)  # who gives back may run in another loop

    def lose(self, used: Usage) -> bool:
        """Count what a call that goes on may have cost so far; whether it may be sent again."""
        with self.paid.lock:
            self.paid.spent += used
            return self._covers(Usage())

    def settle(self, most: Usage, used: Usage) -> None:
        paid = self.paid
        with paid.lock:
            paid.calls -= 1
            paid.reserved += Usage(-most.prompt_tokens, -most.answer_tokens, -most.cost)
            paid.spent += used

    def _reserved(self, most: Usage) -> bool:
        paid = self.paid
        with paid.lock:
            if self._covers(most):
                paid.calls, paid.reserved = paid.calls + 1, paid.reserved + most
                return True
            if paid.calls:
                return False
            why = f"the next call may take {most.tokens:,} tokens ({most.cost:.4f})"
            raise BudgetSpent(told(self.section, paid.spent, why))

    def _covers(self, most: Usage) -> bool:
        wanted = self.paid.spent + self.paid.reserved + most
        tokens, cost = self.section.tokens, self.section.cost
        return (tokens is None or wanted.tokens <= tokens) and (cost is None or wanted.cost <= cost + 1e-9)


def told(section: BudgetSection, spent: Usage, why: str) -> str:
    limits = []
    if section.tokens is not None:
        limits.append(f"{spent.tokens:,} of {section.tokens:,} tokens")
    if section.cost is not None:
        limits.append(f"{spent.cost:.4f} of {section.cost:.4f}")
    return (
        f"budget: {' and '.join(limits)} are spent, and {why}. Every answer so far is kept; raise budget and run again "
        "to go on."
    )


def priced(prices: PriceSection, prompt_tokens: int, answer_tokens: int, estimated: bool = False) -> Usage:
    cost = (prompt_tokens * prices.prompt + answer_tokens * prices.answer) / 1e6
    return Usage(prompt_tokens, answer_tokens, cost, estimated)


class Rates:
    """Calls and tokens a minute, spread over it: a limiter of N a minute would let N through at once."""

    def __init__(self, section: EndpointSection):
        calls, tokens = section.requests_per_minute, section.tokens_per_minute
        self._calls = AsyncLimiter(1, MINUTE / calls) if calls else None
        self._tokens = AsyncLimiter(tokens / MINUTE, 1) if tokens else None
        self._turn = asyncio.Lock()

    async def wait(self, most: Usage) -> None:
        if self._calls:
            await self._calls.acquire()
        if self._tokens:
            async with self._turn:  # one after the other: all at a time would all be through at the same moment
                for _ in range(int(most.tokens // self._tokens.max_rate)):
                    await self._tokens.acquire(self._tokens.max_rate)
                await self._tokens.acquire(most.tokens % self._tokens.max_rate)


class Pause:
    """A server that says when to come back is left alone until then, by every call."""

    def __init__(self) -> None:
        self._until = 0.0

    def extend(self, seconds: float) -> None:
        self._until = max(self._until, time.monotonic() + seconds)

    async def over(self) -> None:
        while (left := self._until - time.monotonic()) > 0:
            await asyncio.sleep(left)
