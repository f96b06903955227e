"""Run coroutines side by side, lose nothing that was paid for, and fail with one plain error."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from tasks.errors import StoppedError

T = TypeVar("T")


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order. When one fails the others still finish, as their requests are paid; then it raises.

    What made the others stop is raised before what they say of having been stopped.
    """
    results = await asyncio.gather(*coroutines, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, StoppedError))
    return [result for result in results if not isinstance(result, BaseException)]
