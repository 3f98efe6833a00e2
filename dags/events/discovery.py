"""Finding the objects to load: a bounded part of the bucket per tick, compared with the manifest, in batches."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dags.events import manifest
from dags.events.batches import BatchLimits, batch_hash, batches_of
from dags.events.manifest import FINAL_STATES, Manifest
from dags.events.objects import EVENTS_PREFIX, ObjectVersion, is_folder_marker, list_page, problem_of

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client


@dataclass(frozen=True)
class TickLimits:
    """Limits of one tick: pages of 1,000 objects to list, runs to request, and runs of the same batch ever."""

    max_pages: int = 10
    max_runs: int = 10
    max_attempts: int = 3
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
class TickPlan:
    """The batches that a tick requests, each with its number of earlier runs, and those that had too many runs."""

    batches: Sequence[tuple[Sequence[ObjectVersion], int]]
    given_up: Sequence[Sequence[ObjectVersion]]
    cursor: str


def plan_tick(
    listing: Listing, pending: Sequence[ObjectVersion], count_runs: Callable[[str], int], limits: TickLimits
) -> TickPlan:
    """Return the batches to request. If they are more than a tick may request, the next tick starts at the rest."""
    batches: list[tuple[Sequence[ObjectVersion], int]] = []
    given_up: list[Sequence[ObjectVersion]] = []
    for batch in batches_of(pending, limits.batch):
        if len(batches) == limits.max_runs:
            before = [version.key for version in listing.versions if version.key < batch[0].key]
            return TickPlan(batches, given_up, before[-1])
        runs = count_runs(batch_hash(batch))
        if runs < limits.max_attempts:
            batches.append((batch, runs))
        else:
            given_up.append(batch)
    return TickPlan(batches, given_up, listing.cursor)
