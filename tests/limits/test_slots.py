"""Slots whose number changes while they are in use."""

from __future__ import annotations

import asyncio

import pytest

from tasks.limits.slots import Slots


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_fewer_slots_take_nobodys_away() -> None:
    """Who is inside stays; nobody new comes in until there is room."""
    slots = Slots(3)
    for _ in range(3):
        await slots.acquire()
    slots.resize(1)
    waiting = asyncio.ensure_future(slots.acquire())
    within = asyncio.ensure_future(slots.within(1))
    slots.release()
    await settle()
    assert not within.done()
    slots.release()
    await settle()
    assert within.done()
    assert not waiting.done()
    slots.release()
    await waiting
    assert slots.taken == 1


async def test_more_slots_let_those_in_who_wait() -> None:
    """In the order of asking, and no more than there are."""
    slots, order = Slots(0), list[int]()

    async def take(number: int) -> None:
        await slots.acquire()
        order.append(number)

    tasks = [asyncio.ensure_future(take(number)) for number in range(4)]
    await settle()
    slots.resize(3)
    await settle()
    assert order == [0, 1, 2]
    slots.release()
    await asyncio.gather(*tasks)
    assert (order, slots.taken) == ([0, 1, 2, 3], 3)


async def test_a_cancelled_waiter_gives_its_turn_on() -> None:
    """Whether it was called already or not."""
    slots = Slots(1)
    await slots.acquire()
    first, second, third = (asyncio.ensure_future(slots.acquire()) for _ in range(3))
    await settle()
    first.cancel()
    await settle()
    slots.release()  # calls the second
    second.cancel()
    await third
    with pytest.raises(asyncio.CancelledError):
        await second
    assert slots.taken == 1
