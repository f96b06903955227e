"""What every request of a run passes: one gate and one retry layer for the embedder, one for the store."""

from __future__ import annotations

import re
from collections import Counter

from prefect.settings import get_current_settings

from tasks.breaker import Breaker
from tasks.embed.port import Embedder
from tasks.limits.budget import Budget
from tasks.limits.gate import Gate
from tasks.limits.record import FileRecord
from tasks.provider_settings import EmbedderSettings
from tasks.retries import Retries
from tasks.settings import IngestSettings
from tasks.upsert.port import Store


class Gates:
    """The gates of one process. They belong to the event loop that made them."""

    def __init__(self, settings: IngestSettings, embedder: Embedder, store: Store) -> None:
        self.embed = Gate(settings.concurrency, shared_budget(settings, embedder))
        self.upsert = Gate(store.limits.concurrency)
        down = Breaker("the embedder", on_open=self.embed.close)
        self.embed_retries = Retries(waiting=self.embed.until_closed, breaker=down)
        down = Breaker("the store", on_open=self.upsert.close)
        self.upsert_retries = Retries(waiting=self.upsert.until_closed, breaker=down)

    @property
    def retries(self) -> Counter[str]:
        """The retries that were made, by stage and kind."""
        return self.embed_retries.counts + self.upsert_retries.counts

    def close(self) -> None:
        """Let no embedding request pass any more; what is embedded is still upserted."""
        self.embed.close()


def shared_budget(settings: IngestSettings, embedder: Embedder) -> Budget:
    """The embedder's budget of a minute, one for all processes of this machine under one PREFECT_HOME."""
    record = FileRecord(get_current_settings().home / "millrace" / "limits" / budget_name(settings.embedder))
    return Budget(settings.rpm, settings.tpm, embedder.limits.inputs_per_minute, record=record)


def budget_name(embedder: EmbedderSettings) -> str:
    """Names those who share it: OpenAI's limits are of an organisation, a project and a model (rate-limit guide)."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{embedder.kind}-{getattr(embedder, 'model', '')}".strip("-"))
