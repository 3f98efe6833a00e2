"""Watch the runs of an instance until they have finished, to check that limits on concurrent runs hold."""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from dags.tests.webserver import POLL_SECONDS

IN_PROGRESS = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
OVER = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


@dataclass(frozen=True)
class Watched:
    """How runs ended, and how many were in progress at once."""

    statuses: Mapping[str, dg.DagsterRunStatus]
    jobs: Sequence[str]
    most_at_once: int
    waited: bool
    spans: Sequence[tuple[float, float]]

    @property
    def overlap(self) -> bool:
        """Whether two runs were in progress at once, by their events: polling may miss it."""
        return any(earlier[1] > later[0] for earlier, later in itertools.pairwise(self.spans))


def watch(instance: dg.DagsterInstance, count: int, seconds: float) -> Watched:
    """Poll the runs of an instance until so many have finished. Fails the test when that takes longer."""
    most_at_once, waited = 0, False
    statuses: dict[str, dg.DagsterRunStatus] = {}
    deadline = time.monotonic() + seconds
    while not (len(statuses) == count and set(statuses.values()) <= OVER):
        assert time.monotonic() < deadline, statuses
        time.sleep(POLL_SECONDS)
        statuses = {run.run_id: run.status for run in instance.get_runs()}
        most_at_once = max(most_at_once, sum(status in IN_PROGRESS for status in statuses.values()))
        waited = waited or dg.DagsterRunStatus.QUEUED in statuses.values()
    spans = sorted(
        (stats.start_time, stats.end_time)
        for stats in map(instance.get_run_stats, statuses)
        if stats.start_time is not None and stats.end_time is not None
    )
    return Watched(statuses, sorted(run.job_name for run in instance.get_runs()), most_at_once, waited, spans)
