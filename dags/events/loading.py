"""Loading a batch of objects into `events`, each object exactly once, even if a load dies at any statement.

One batch is loaded at a time, under a lock:

1. Recover: drop the staging tables and kill the statements of loads that died (`recovery.py`).
2. Read from the manifest what is already loaded, and list what the objects are now.
3. Stage: read all objects of a format with one statement into a staging table named after the attempt. A statement that
   fails is halved until the unreadable object is alone; the others go on (`staging.py`).
4. Account for every line of every object, and check that no object changed meanwhile (`accounting.py`).
5. Publish (`publishing.py`): write `loading` to the manifest, and remove rows that a dead attempt left.
6. Run one INSERT … SELECT each for events, page views and rejected lines; remove the rows of older content of a key.
7. Write `loaded` to the manifest.

Before step 5 only staging tables change. After it, the next load of the same object finds `loading` in the manifest and
starts by removing the object's rows.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import SecretStr

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import SchemaForm
from dags.common.clickhouse.object_storage import ObjectStorage
from dags.common.locks import Lock
from dags.events import manifest
from dags.events.accounting import account_for_lines, changed_problem
from dags.events.manifest import Entry, Manifest, ObjectState
from dags.events.objects import ObjectProblem, ObjectVersion
from dags.events.publishing import Publisher
from dags.events.recovery import end_dead_loads
from dags.events.staging import StagedBatch


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
    storage: ObjectStorage
    visitor_hash_key: SecretStr
    list_versions: Callable[[Sequence[str]], Mapping[str, ObjectVersion]]
    run_id: str
    form: SchemaForm


def lock_name(cluster: ClickhouseCluster) -> str:
    """Return the name of the lock that `load_batch` needs: one load at a time into one database."""
    return f"load of events into {cluster.database}"


def load_batch(loader: Loader, keys: Sequence[str], lock: Lock, *, retry_unreadable: bool = False) -> BatchResult:
    """Load the current content of the keys that is not loaded yet, holding the lock of `lock_name`.

    With `retry_unreadable`, objects that could not be read before are tried again. Raises what ClickHouse, object
    storage and the lock raise. The next load of the same keys then recovers.
    """
    end_dead_loads(loader.cluster)
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
    staged = StagedBatch(loader.cluster.only(hosts[int(attempt_id, 16) % len(hosts)]), attempt_id)
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
    entries, unaccounted = account_for_lines(staged, _without(wanted, problems), known)
    problems += unaccounted
    problems += _changed(loader, _without(wanted, problems))
    failed = {problem.key for problem in problems}
    good = [entry for entry in entries if entry.key not in failed]
    publisher = Publisher(loader.cluster, loader.form, loader.run_id, staged, known)
    publisher.record_unreadable(wanted, problems)
    return publisher.publish(good, lock) if good else [], problems


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
