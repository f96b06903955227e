"""A poison document costs itself alone: a request that fails for good is halved until the bad row stands alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from tasks.errors import MillraceError, RequestRejectedError, RequestTooLargeError, TransientError
from tasks.records import Reason

Send = Callable[[Sequence[int]], Awaitable[None]]


async def send_halving(rows: Sequence[int], send: Send) -> dict[int, MillraceError]:
    """Send rows in one request, or in halves where that is refused; at most ``2 * len(rows) - 1`` requests.

    Returns the rows that were given up on, each with its last error. Errors that concern every request pass through.
    """
    try:
        await send(rows)
    except (RequestRejectedError, TransientError) as error:
        if len(rows) == 1:
            return {rows[0]: error}
        middle = len(rows) // 2
        return await send_halving(rows[:middle], send) | await send_halving(rows[middle:], send)
    return {}


def reason_of(error: MillraceError) -> Reason:
    """The reason class of a document that ended with this error."""
    match error:
        case RequestTooLargeError():
            return Reason.TOO_LARGE
        case TransientError():
            return Reason.EXHAUSTED
        case _:
            return Reason.REJECTED
