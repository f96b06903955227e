"""Model tokens as they are billed."""

from __future__ import annotations

from tasks.limits.calibration import ANSWERS_TRUSTED, Calibration


def test_a_count_holds_until_enough_answers_are_there() -> None:
    """It is a bound by the embedder's contract, and one cheap answer is no proof."""
    calibration = Calibration()
    for _ in range(ANSWERS_TRUSTED - 1):
        calibration.learn(100, 25)
        assert calibration.expected(1_000) == 1_000
    calibration.learn(100, 25)
    assert calibration.expected(1_000) == 250


def test_a_count_that_is_too_low_is_mended_at_once() -> None:
    """By the very first answer."""
    calibration = Calibration()
    calibration.learn(100, 130)
    assert calibration.expected(1_000) == 1_300


def test_the_dearest_of_the_newest_answers_counts() -> None:
    """Not the mean: what is reserved is not less than the bill."""
    calibration = Calibration()
    for billed in [20, 60, *[30] * 50]:
        calibration.learn(100, billed)
    assert calibration.expected(1_000) == 600
    for _ in range(100):
        calibration.learn(100, 30)
    assert calibration.expected(1_000) == 300


def test_a_server_that_bills_nothing_teaches_nothing() -> None:
    """Some compatible servers send no usage."""
    calibration = Calibration()
    for _ in range(50):
        calibration.learn(100, 0)
    assert calibration.expected(1_000) == 1_000
