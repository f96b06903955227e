"""The names of checkpoints: written out, versioned by hand, safe as file names.

A version is raised when the meaning of what lies under the key changes; older files are then never read again.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.fingerprints import framed

KEY_PREFIX = "millrace/"
JOBS = "millrace/jobs-v1/"
EMBEDS = "millrace/embeds-v1/"


def receipt_key(job: str, shard: int, sequence: int) -> str:
    """Where the receipt of one segment lies."""
    return f"millrace/receipts-v1/{job}/{shard:04d}/{sequence:08d}"


def vectors_key(job: str, shard: int, sequence: int, part: int) -> str:
    """Where one embedding answer of one segment lies."""
    return f"millrace/vectors-v1/{job}/{shard:04d}/{sequence:08d}/{part:05d}"


def embed_key(vector_keys: Sequence[bytes]) -> str:
    """Where the embed record of these texts lies; the vector keys hold the embedder's identity."""
    return f"{EMBEDS}{framed(b''.join(vector_keys)).hex()}"


def job_prefixes(job: str) -> list[str]:
    """Below these lies all that one job has, but for embed records, which name no job."""
    return [f"{JOBS}{job}/", *(f"millrace/{what}-v1/{job}/" for what in ("receipts", "vectors", "ledgers"))]


def ledger_head_key(job: str, shard: int) -> str:
    """Where the small record lies that names the compacted ledger."""
    return f"millrace/ledgers-v1/{job}/{shard:04d}/head"


def job_record_key(job: str) -> str:
    """Where a job's binding and the course of its last run lie."""
    return f"{JOBS}{job}/record"


def dead_letters_key(job: str) -> str:
    """Where a job's dead letters lie, one JSON object a line."""
    return f"{JOBS}{job}/dead_letters.jsonl"


def lock_key(job: str) -> str:
    """Where the writer of a job says that it is alive."""
    return f"{JOBS}{job}/lock"


def shard_lock_key(job: str, shard: int) -> str:
    """Where the writer of one shard says that it is alive."""
    return f"{JOBS}{job}/locks/{shard:04d}"


def is_lock(job: str, key: str) -> bool:
    """Whether the key is of a lock of this job. Their files stay: one that is removed could be held by two."""
    return key == lock_key(job) or key.startswith(f"{JOBS}{job}/locks/")


def stop_key(job: str, run: str) -> str:
    """Where a run tells its shards to stop, wherever they are."""
    return f"{JOBS}{job}/stops/{run}"


def ledger_key(job: str, shard: int, generation: int) -> str:
    """Where one generation of the compacted ledger lies."""
    return f"millrace/ledgers-v1/{job}/{shard:04d}/{generation:08d}"
