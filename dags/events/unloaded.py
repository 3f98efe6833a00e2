"""Objects under the watched prefix of which no event is in ClickHouse, each with the reason."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.events import manifest
from dags.events.manifest import Manifest, ObjectState
from dags.events.objects import ObjectVersion, is_folder_marker, problem_of

MAX_KEYS_PER_READ = 10_000


class Cause(StrEnum):
    """Why an object has no event in ClickHouse."""

    WRONG_NAME = "name cannot be loaded"
    UNREADABLE = "content cannot be read"
    WAITING = "waits for a load"
    ZERO_BYTES = "has 0 bytes"
    NO_EVENTS = "has content, but no event"


# The others resolve themselves, or are what the source has written.
FAULTS = frozenset({Cause.WRONG_NAME, Cause.UNREADABLE})


class UnloadedObject(NamedTuple):
    """An object without events in ClickHouse."""

    key: str
    cause: Cause
    reason: str


def find_unloaded(cluster: ClickhouseCluster, versions: Iterable[ObjectVersion]) -> Iterator[UnloadedObject]:
    """Yield the objects without events in ClickHouse. The versions are in the order of their keys."""
    remaining = iter(versions)
    while part := list(islice(remaining, MAX_KEYS_PER_READ)):
        known = manifest.read_range(cluster, part[0].key, part[-1].key)
        yield from unloaded_objects(part, known)


def unloaded_objects(versions: Iterable[ObjectVersion], known: Manifest) -> Iterator[UnloadedObject]:
    """Yield the objects that have no event, according to the manifest of their keys."""
    for version in versions:
        if is_folder_marker(version.key):
            continue
        problem = problem_of(version.key)
        entry = known.get(version.identity)
        if problem is not None:
            yield UnloadedObject(version.key, Cause.WRONG_NAME, problem)
        elif entry is not None and entry.state is ObjectState.FAILED:
            yield UnloadedObject(version.key, Cause.UNREADABLE, entry.reason)
        elif entry is None or entry.state is not ObjectState.LOADED:
            yield UnloadedObject(version.key, Cause.WAITING, "")
        elif version.size_bytes == 0:
            yield UnloadedObject(version.key, Cause.ZERO_BYTES, "its source wrote nothing, or its upload was cut off")
        elif entry.rows == 0:
            skipped = ", ".join(f"{rule}: {lines}" for rule, lines in sorted(entry.skipped_rows.items()))
            yield UnloadedObject(version.key, Cause.NO_EVENTS, f"{entry.lines} lines. {skipped}".rstrip(". "))
