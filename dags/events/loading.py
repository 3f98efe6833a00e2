"""Loading a batch of objects into `events`, each object exactly once, even if a load dies at any statement.

One batch is loaded at a time, under a lock:

1. Recover: drop the staging tables and kill the statements of loads that died (`recovery.py`).
2. Read from the manifest what is already loaded, and list what the objects are now.
3. Stage: read all objects of a format with one statement into a staging table named after the attempt. A statement that
   fails is halved until the unreadable object is alone; the others go on (`staging.py`).
4. Skip the events that a completed deletion request covers (`deleted.py`), account for every line of every object,
   and check that no object changed meanwhile (`accounting.py`).
5. Publish (`publishing.py`): write `loading` to the manifest, insert again what other objects share with those whose
   rows are removed (`overlap.py`), and remove rows that a dead attempt left.
6. Run one INSERT … SELECT each for events, page views and rejected lines; remove the rows of older content of a key.
7. Write `loaded` to the manifest.

Before step 5 only staging tables change. After it, the next load of the same object finds `loading` in the manifest and
starts by removing the object's rows.
"""

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import SecretStr

from dags.common import deletion_requests
from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import SchemaForm
from dags.common.clickhouse.object_storage import ObjectStorage
from dags.common.deletion_requests import COMPLETION_LOCK
from dags.common.locks import Lock, exclusive
from dags.common.postgres import Postgres
from dags.events import manifest, overlap
from dags.events.access_logs import LogRules
from dags.events.accounting import account_for_lines, changed_problem
from dags.events.batches import BatchLimits, batches_of
from dags.events.deleted import skip_deleted_events
from dags.events.manifest import Entry, Manifest, ObjectState
from dags.events.objects import ObjectProblem, ObjectVersion, team_of
from dags.events.publishing import Publisher
from dags.events.recovery import end_dead_loads
from dags.events.staging import StagedBatch

logger = logging.getLogger(__name__)

COMPLETION_WAIT_SECONDS = 3600.0


@dataclass(frozen=True)
class BatchResult:
    """The manifest entries of the objects that a load added, and the objects that it could not load."""

    loaded: Sequence[Entry] = ()
    already_loaded: int = 0
    problems: Sequence[ObjectProblem] = ()


@dataclass(frozen=True)
class Loader:
    """The dependencies of a load. `list_versions` returns the current versions of keys."""

    cluster: ClickhouseCluster
    postgres: Postgres
    storage: ObjectStorage
    visitor_hash_key: SecretStr
    list_versions: Callable[[Sequence[str]], Mapping[str, ObjectVersion]]
    run_id: str
    form: SchemaForm
    log_rules: LogRules = field(default_factory=LogRules)


def lock_name(cluster: ClickhouseCluster) -> str:
    """Return the name of the lock that `load_batch` needs: one load at a time into one database."""
    return f"load of events into {cluster.database}"


def load_batch(loader: Loader, keys: Sequence[str], lock: Lock, *, retry_unreadable: bool = False) -> BatchResult:
    """Load the current content of the keys that is not loaded yet, holding the lock of `lock_name`.

    With `retry_unreadable`, objects that could not be read before are tried again. Raises what ClickHouse, object
    storage and the lock raise. The next load of the same keys then recovers.
    """
    end_dead_loads(loader.cluster)
    deletion_requests.apply_migrations(loader.postgres)
    versions = loader.list_versions(keys)
    missing = [
        ObjectProblem(key, "is not in the bucket anymore", is_unreadable=False) for key in keys if key not in versions
    ]
    known = manifest.read_keys(loader.cluster, sorted(versions))
    final = {ObjectState.LOADED} if retry_unreadable else manifest.FINAL_STATES
    wanted = [version for version in sorted(versions.values()) if manifest.state_of(known, version) not in final]
    already_loaded = len(versions) - len(wanted)
    if not wanted:
        return BatchResult((), already_loaded, missing)
    attempt_id = uuid.uuid4().hex
    hosts = loader.cluster.hosts
    staged = StagedBatch(
        loader.cluster.only(hosts[int(attempt_id, 16) % len(hosts)]), attempt_id, log_rules=loader.log_rules
    )
    try:
        loaded, problems = _load(loader, staged, wanted, known, lock)
    finally:
        staged.drop()
    return BatchResult(loaded, already_loaded, [*missing, *problems])


def _load(
    loader: Loader, staged: StagedBatch, wanted: Sequence[ObjectVersion], known: Manifest, lock: Lock
) -> tuple[list[Entry], list[ObjectProblem]]:
    """Stage, account and publish; return the new manifest entries and what was not loaded."""
    problems = _with_bad_keys(loader, wanted, staged.read(wanted, loader.storage, loader.visitor_hash_key))
    with exclusive(loader.postgres, COMPLETION_LOCK, COMPLETION_WAIT_SECONDS, shared=True) as completion_lock:
        _skip_deleted(loader, staged, wanted)
        entries, unaccounted = account_for_lines(staged, _without(wanted, problems), known)
        problems += unaccounted
        problems += _changed(loader, _without(wanted, problems))
        failed = {problem.key for problem in problems}
        good = [entry for entry in entries if entry.key not in failed]

        def restore(leftovers: Sequence[Entry], replaced: Sequence[Entry]) -> None:
            _restore(loader, publisher, leftovers, replaced, [entry.key for entry in good])

        publisher = Publisher(loader.cluster, loader.form, loader.run_id, staged, known, restore)
        publisher.record_unreadable(wanted, problems)
        loaded = publisher.publish(good, lock) if good else []
        completion_lock.assert_held()
    return loaded, problems


def _skip_deleted(loader: Loader, staged: StagedBatch, versions: Sequence[ObjectVersion]) -> None:
    """Skip the staged events that a completed deletion request covers."""
    teams = {team_of(version.key) for version in versions}
    skip_deleted_events(staged, deletion_requests.completed_requests(loader.postgres, teams))


def _restore(
    loader: Loader,
    publisher: Publisher,
    leftovers: Sequence[Entry],
    replaced: Sequence[Entry],
    objects: Sequence[str],
) -> None:
    """Insert again the events of other loaded objects that may be lost with the removed objects."""
    staged = publisher.staged
    days = overlap.find_lost_events(staged, leftovers, replaced, objects)
    if not days:
        return
    all_days = set().union(*days.values())
    known = manifest.read_teams(loader.cluster, days, min(all_days), max(all_days))
    others = {entry.key: entry for entry in overlap.others_with_events_on(days, known, objects)}
    current = loader.list_versions(sorted(others)) if others else {}
    same = [version for key, version in sorted(current.items()) if version.etag == others[key].etag]
    if len(same) < len(others):
        gone = sorted(others.keys() - {version.key for version in same})
        logger.warning("Not read again for events that they share with removed objects: %s", ", ".join(gone))
    for number, batch in enumerate(batches_of(same, BatchLimits())):
        restored = StagedBatch(
            staged.host,
            f"{staged.attempt_id}_restored_{number}",
            overlap.is_lost(staged),
            {"objects": tuple(objects)},
            log_rules=loader.log_rules,
        )
        try:
            problems = restored.read(batch, loader.storage, loader.visitor_hash_key)
            for problem in problems:
                logger.warning("Not read again for shared events: %s: %s", problem.key, problem.reason)
            _skip_deleted(loader, restored, batch)
            entries = [replace(others[version.key], rejected_rows=0) for version in _without(batch, problems)]
            superseded = [entry.object_id for entry in (*leftovers, *replaced)]
            replace(publisher, staged=restored).insert(entries, superseded)
        finally:
            restored.drop()


def _with_bad_keys(
    loader: Loader, versions: Sequence[ObjectVersion], problems: Sequence[ObjectProblem]
) -> list[ObjectProblem]:
    """Return the problems, with those objects as unreadable that ClickHouse does not find although they exist."""
    not_found = [problem.key for problem in problems if problem.is_not_found]
    current = loader.list_versions(not_found) if not_found else {}
    exists = {version.key for version in versions if current.get(version.key) == version}
    return [
        replace(
            problem,
            is_unreadable=True,
            reason=f"ClickHouse does not find an object of this name, although it exists. Rename it. {problem.reason}",
        )
        if problem.is_not_found and problem.key in exists
        else problem
        for problem in problems
    ]


def _without(versions: Sequence[ObjectVersion], problems: Sequence[ObjectProblem]) -> list[ObjectVersion]:
    failed = {problem.key for problem in problems}
    return [version for version in versions if version.key not in failed]


def _changed(loader: Loader, versions: Sequence[ObjectVersion]) -> list[ObjectProblem]:
    """Return the objects whose content in the bucket is not the one that was read."""
    current = loader.list_versions([version.key for version in versions]) if versions else {}
    return [
        changed_problem(version.key)
        for version in versions
        if version.key not in current or current[version.key].etag != version.etag
    ]
