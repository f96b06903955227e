"""Which workers a run's settings stand for."""

from __future__ import annotations

import pytest

from flows.runners import workers_for
from tasks.errors import UsageError
from tasks.settings import IngestSettings


async def test_one_shard_is_worked_at_here_whatever_the_runner() -> None:
    """Nothing is started for it, and no other scheduler asked."""
    async with workers_for(IngestSettings(shards=1, runner="dask:tcp://nobody:1")) as workers:
        assert workers.is_here


@pytest.mark.parametrize(
    ("setting", "said"), [({"source": "-"}, "a stream is copied to this machine"), ({"rpm": 60}, "rpm and tpm")]
)
def test_workers_elsewhere_are_not_given_what_they_cannot_share(setting: dict[str, object], said: str) -> None:
    """It is bad input, and says what to use."""
    with pytest.raises(UsageError, match=f"{said}.*use --runner local or dask"):
        workers_for(IngestSettings(shards=2, runner="dask:tcp://nobody:1", **setting))
