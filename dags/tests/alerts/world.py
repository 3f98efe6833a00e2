"""A Dagster instance whose runs end when and how a test wants: real runs of real jobs, whose events the test writes.

Nothing is executed, so that thousands of runs take seconds and have the times that a test needs.
"""

import contextlib
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
from dagster._core.events import DagsterEvent, JobFailureData, RunFailureReason
from dagster._core.execution.plan.objects import StepFailureData, StepSuccessData
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.runs.schema import RunsTable
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster_shared.error import SerializableErrorInfo

LOCATION = "web"


@cache
def op_job(name: str, owners: tuple[str | None, ...] = ("team-a",)) -> dg.JobDefinition:
    """Return a job with a step for each owner: step_0, step_1, …"""

    def build(number: int, owner: str | None) -> dg.OpDefinition:
        @dg.op(name=f"step_{number}", tags={} if owner is None else {"owner": owner})
        def work() -> None: ...

        return work

    @dg.job(name=name)
    def made() -> None:
        for number, owner in enumerate(owners):
            build(number, owner)()

    return made


@cache
def asset_job(owner_of_asset: tuple[tuple[str, str], ...]) -> dg.JobDefinition:
    """Return the job of all runs that are started on assets, with a step for each asset, named like it."""

    def build(name: str, owner: str) -> dg.AssetsDefinition:
        @dg.asset(name=name, op_tags={"owner": owner})
        def made() -> None: ...

        return made

    definitions = dg.Definitions(assets=[build(name, owner) for name, owner in owner_of_asset])
    return definitions.resolve_implicit_global_asset_job_def()


@cache
def _plan(job: dg.JobDefinition) -> Any:
    from dagster._core.execution.api import create_execution_plan

    return create_execution_plan(job)


def origin(job_name: str, location: str) -> RemoteJobOrigin:
    """Return the origin that Dagster stores with a run of a code location."""
    code = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name=f"dags.{location}"), location)
    return RemoteJobOrigin(RemoteRepositoryOrigin(code, "__repository__"), job_name)


def user_error(error_class: str, message: str) -> SerializableErrorInfo:
    """Return what Dagster stores of an exception in a step: its own error, with the user's error as the cause."""
    cause = SerializableErrorInfo(f"{error_class}: {message}\n", [], error_class)
    return SerializableErrorInfo("dagster…Error: Error occurred\n", [], "DagsterExecutionStepExecutionError", cause)


@dataclass
class World:
    """An instance and its clock."""

    instance: dg.DagsterInstance
    now: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))

    def __call__(self) -> dt.datetime:
        """Return the time: a world is its own clock."""
        return self.now

    def forward(self, seconds: float) -> None:
        """Move the clock forward."""
        self.now += dt.timedelta(seconds=seconds)

    def start(
        self,
        job: dg.JobDefinition,
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
        assets: Sequence[str] = (),
        location: str = LOCATION,
    ) -> str:
        """Start a run now, and return its id."""
        run = self.instance.create_run_for_job(
            job,
            execution_plan=_plan(job),
            tags=tags,
            parent_run_id=parent,
            root_run_id=parent,
            asset_selection={dg.AssetKey(one) for one in assets} or None,
            remote_job_origin=origin(job.name, location),
            status=dg.DagsterRunStatus.STARTED,
        )
        self.set_created(run.run_id, self.now)
        return run.run_id

    def set_created(self, run_id: str, time: dt.datetime) -> None:
        """Set the time at which a run was created, where Dagster would set the real time."""
        storage: Any = self.instance.run_storage
        with storage.connect() as connection:
            connection.execute(
                sa.update(RunsTable)
                .where(RunsTable.c.run_id == run_id)
                .values(create_timestamp=time.astimezone(dt.UTC).replace(tzinfo=None))
            )

    def step_fails(self, run_id: str, job: str, step: str, error: SerializableErrorInfo | None = None) -> None:
        """Let a step of the run fail now."""
        self._report(
            run_id,
            job,
            dg.DagsterEventType.STEP_FAILURE,
            StepFailureData(error or user_error("ValueError", "boom"), None),  # type: ignore[no-untyped-call]
            step_key=step,
        )

    def step_succeeds(self, run_id: str, job: str, step: str) -> None:
        """Let a step of the run succeed now."""
        self._report(run_id, job, dg.DagsterEventType.STEP_SUCCESS, StepSuccessData(1.0), step_key=step)  # type: ignore[no-untyped-call]

    def end(self, run_id: str, job: str, how: dg.DagsterEventType, message: str = "") -> None:
        """Let the run end now."""
        data = None
        if how is dg.DagsterEventType.RUN_FAILURE:
            reason = RunFailureReason.UNKNOWN if message else RunFailureReason.STEP_FAILURE
            data = JobFailureData(error=None, failure_reason=reason)
        self._report(run_id, job, how, data, message=message)

    def fail(
        self,
        job: dg.JobDefinition,
        steps: Sequence[str] = ("step_0",),
        *,
        error: SerializableErrorInfo | None = None,
        **how: Any,
    ) -> str:
        """Start a run whose steps fail now, and return its id. `how` are arguments of `start`."""
        run_id = self.start(job, **how)
        for step in steps:
            self.step_fails(run_id, job.name, step, error)
        self.end(run_id, job.name, dg.DagsterEventType.RUN_FAILURE)
        return run_id

    def succeed(self, job: dg.JobDefinition, **how: Any) -> str:
        """Start a run that succeeds now, and return its id."""
        run_id = self.start(job, **how)
        self.end(run_id, job.name, dg.DagsterEventType.RUN_SUCCESS)
        return run_id

    def cancel(self, job: dg.JobDefinition, **how: Any) -> str:
        """Start a run that is canceled now, and return its id."""
        run_id = self.start(job, **how)
        self.end(run_id, job.name, dg.DagsterEventType.RUN_CANCELED)
        return run_id

    def check(
        self,
        job: dg.JobDefinition,
        asset: str,
        name: str,
        *,
        passed: bool,
        severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    ) -> str:
        """Start a run that succeeds, with an asset check that passes or fails now, and return its id."""
        run_id = self.start(job)
        evaluation = AssetCheckEvaluation(
            dg.AssetKey(asset), name, passed, {}, severity=severity, description="It should not be."
        )
        self._report(
            run_id, job.name, dg.DagsterEventType.ASSET_CHECK_EVALUATION, evaluation, step_key=f"{asset}_{name}"
        )
        self.end(run_id, job.name, dg.DagsterEventType.RUN_SUCCESS)
        return run_id

    def _report(
        self,
        run_id: str,
        job: str,
        kind: dg.DagsterEventType,
        data: Any,
        *,
        step_key: str | None = None,
        message: str = "",
    ) -> None:
        event = DagsterEvent(
            event_type_value=kind.value, job_name=job, event_specific_data=data, step_key=step_key, message=message
        )
        self.instance.report_dagster_event(event, run_id, timestamp=self.now.timestamp())


@contextlib.contextmanager
def local_instance(home: Path, postgres_dsn: str | None = None, settings: str = "") -> Iterator[dg.DagsterInstance]:
    """Open an instance in a directory, stored in files or in a Postgres database."""
    home.mkdir(parents=True, exist_ok=True)
    storage = ""
    if postgres_dsn is not None:
        address = sa.make_url(postgres_dsn).set(drivername="postgresql+psycopg2")
        storage = f"storage:\n  postgres:\n    postgres_url: {address.render_as_string(hide_password=False)}\n"
    (home / "dagster.yaml").write_text(f"telemetry:\n  enabled: false\n{storage}{settings}", encoding="utf-8")
    instance = dg.DagsterInstance.from_config(str(home))
    try:
        yield instance
    finally:
        instance.dispose()
