"""Fair shares of a concurrency limit: whatever runs come and go, never more than there is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tasks.limits.shares import fair_share, next_chunk, to_give_back


@given(limit=st.integers(1, 1_000), wanted=st.lists(st.integers(1, 1_000), min_size=1, max_size=50))
def test_shares_fit_the_limit_and_leave_nobody_out(limit: int, wanted: list[int]) -> None:
    """Where there are slots for all."""
    shares = [fair_share(limit, len(wanted), each) for each in wanted]
    assert min(shares) >= 1
    assert sum(shares) <= max(limit, len(wanted))


@given(limit=st.integers(1, 1_000), runs=st.integers(1, 50), held=st.lists(st.integers(1, 100), max_size=20))
def test_a_run_comes_to_its_share_in_a_few_steps(limit: int, runs: int, held: list[int]) -> None:
    """From less and from more, and stays there."""
    share = fair_share(limit, runs, 1_000)
    kept = held[: len(held) - to_give_back(held, share)]
    assert sum(kept) <= share
    steps = 0
    while chunk := next_chunk(sum(kept), share):
        kept.append(chunk)
        steps += 1
    assert (sum(kept), to_give_back(kept, share)) == (share, 0)
    assert steps <= 10  # of a thousand slots
