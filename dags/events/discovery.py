"""Finding the objects to load: a bounded part of the bucket per tick, compared with the manifest, in batches."""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dags.events import manifest
from dags.events.batches import BatchLimits, batches_of
from dags.events.manifest import FINAL_STATES, Manifest
from dags.events.objects import EVENTS_PREFIX, ObjectVersion, is_folder_marker, list_page, problem_of

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

FIRST_WAIT = dt.timedelta(minutes=1)
MAX_WAIT = dt.timedelta(hours=1)


@dataclass(frozen=True)
class TickLimits:
    """Limits of one tick: pages of 1,000 objects to list, and runs to request."""

    max_pages: int = 10
    max_runs: int = 10
    batch: BatchLimits = field(default_factory=BatchLimits)


@dataclass(frozen=True)
class Listing:
    """A part of the bucket in the order of keys, and the cursor of the next tick."""

    versions: Sequence[ObjectVersion]
    cursor: str


def list_part(s3: "S3Client", bucket: str, cursor: str, max_pages: int) -> Listing:
    """List the pages after the cursor. The cursor is empty at the beginning and after the end of the bucket."""
    versions: list[ObjectVersion] = []
    for _ in range(max_pages):
        page, more = list_page(s3, bucket, EVENTS_PREFIX, versions[-1].key if versions else cursor)
        versions += page
        if not more:
            return Listing(versions, "")
    return Listing(versions, versions[-1].key if versions else "")


def pending_objects(
    versions: Iterable[ObjectVersion], known: Manifest, in_progress: set[tuple[str, str]]
) -> list[ObjectVersion]:
    """Return the objects that can be loaded, are not loaded, and are not part of an unfinished run."""
    return [
        version
        for version in versions
        if not is_folder_marker(version.key)
        and problem_of(version.key) is None
        and version.identity not in in_progress
        and manifest.state_of(known, version) not in FINAL_STATES
    ]


@dataclass(frozen=True)
class Attempts:
    """The failed runs that should have loaded an object: their number, and when the first began and the last ended."""

    count: int
    since: dt.datetime
    last: dt.datetime

    @property
    def due(self) -> dt.datetime:
        """When to try again: the wait doubles with each attempt."""
        doubled: dt.timedelta = FIRST_WAIT * (1 << min(self.count - 1, 16))
        return self.last + min(doubled, MAX_WAIT)


@dataclass(frozen=True)
class TickPlan:
    """The batches that a tick requests, and the objects that wait after failed runs."""

    batches: Sequence[Sequence[ObjectVersion]]
    waiting: Sequence[ObjectVersion]
    cursor: str


def plan_tick(
    listing: Listing,
    pending: Sequence[ObjectVersion],
    attempts: Mapping[tuple[str, str], Attempts],
    limits: TickLimits,
    now: dt.datetime,
) -> TickPlan:
    """Return the batches to request. If they are more than a tick may request, the next tick starts at the rest.

    Objects whose runs failed are requested again when they are due, in batches that halve with each attempt: an object
    that ends every run that reads it is soon alone, and the others are loaded. They take at most half of the runs.
    """
    first_time = [version for version in pending if version.identity not in attempts]
    again: dict[int, list[ObjectVersion]] = {}
    waiting = []
    for version in pending:
        if version.identity in attempts:
            of_object = attempts[version.identity]
            if of_object.due > now:
                waiting.append(version)
            else:
                again.setdefault(of_object.count, []).append(version)
    batches: list[Sequence[ObjectVersion]] = []
    for count, versions in sorted(again.items()):
        batches += batches_of(versions, limits.batch.halved(count))
    batches = batches[: max(limits.max_runs // 2, 1)]
    for batch in batches_of(first_time, limits.batch):
        if len(batches) == limits.max_runs:
            before = [version.key for version in listing.versions if version.key < batch[0].key]
            return TickPlan(batches, waiting, before[-1] if before else "")
        batches.append(batch)
    return TickPlan(batches, waiting, listing.cursor)
