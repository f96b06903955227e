"""What Linux control groups (v1 and v2) let this process use, and how much of it is in use by all in the group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """A group that limits memory; its limit binds all groups below it."""

    limit_bytes: int
    usage: Path
    statistics: Path

    def used_bytes(self) -> int:
        """Bytes that all its processes hold; what of files is cached goes back by itself and does not count."""
        used = _read_number(self.usage) or 0
        return max(0, used - sum(_cached_bytes(self.statistics)))


def limiting_groups(root: Path = Path("/")) -> list[ControlGroup]:
    """This process's group and those above it, as far as they limit memory. ``root`` has ``proc`` and ``sys``."""
    groups = root / "sys/fs/cgroup"
    v1 = [groups / "memory" / folder for folder in _folders(root, "memory")]
    v2 = [groups / folder for folder in _folders(root, "")]
    found = [_group(folder, "memory.limit_in_bytes", "memory.usage_in_bytes") for folder in v1]
    found += [_group(folder, "memory.max", "memory.current") for folder in v2]
    return [group for group in found if group is not None]


def _group(folder: Path, limit: str, usage: str) -> ControlGroup | None:
    limit_bytes = _read_number(folder / limit)
    return None if limit_bytes is None else ControlGroup(limit_bytes, folder / usage, folder / "memory.stat")


def _folders(root: Path, controller: str) -> list[PurePosixPath]:
    """From this process's group upwards. Lines read ``4:memory:/path`` (v1) or ``0::/path`` (v2)."""
    folders = [PurePosixPath()]  # inside a container the group itself is mounted at the top
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = PurePosixPath(path.lstrip("/"))
            folders += [group, *group.parents]
    return list(dict.fromkeys(folders))


def _cached_bytes(statistics: Path) -> Iterator[int]:
    """v1 sums up the groups below under names of its own, which v2 does without."""
    try:
        found = dict(line.split(" ", 1) for line in statistics.read_text().splitlines())
    except (OSError, ValueError):
        return
    for name in ("active_file", "inactive_file"):
        yield int(found.get(f"total_{name}", found.get(name, "0")))


def _read_number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # v2 writes `max` where there is no limit
