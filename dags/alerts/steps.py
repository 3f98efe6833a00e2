"""What failed in a run: its steps, their assets and owners, and the error, from the run's own plan and log.

The owner of a step is the `owner` tag of its op. The plan that Dagster stores with a run has it, so no team's code is
imported.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from dags.alerts.values import Cause
from dags.common.owners import OWNER_TAG

if TYPE_CHECKING:
    from dagster_shared.error import SerializableErrorInfo

# A message names only a few of the failed steps.
MAX_FAILED_STEPS = 100
# Of an error's message. A message in Slack shows less.
MAX_MESSAGE_CHARACTERS = 4000
CUT = "\n[…]\n"
# Errors in which Dagster wraps the error of the team's code.
WRAPPERS = re.compile(
    r"Dagster(ExecutionStep|TypeCheck|IOManager|ExecutionHandleOutput|ExecutionLoadInput)\w*Error|Retry.*"
)


@dataclass(frozen=True)
class PlannedStep:
    """A step of a run's plan."""

    owner: str | None
    asset_keys: Sequence[str] = ()
    check_names: Sequence[str] = ()


Plan = Mapping[str, PlannedStep]


@dataclass(frozen=True)
class FailedPart:
    """What failed of one owner in a run, by the tags of its steps; owner None where no step has one."""

    owner: str | None
    step_keys: Sequence[str] = ()
    asset_keys: Sequence[str] = ()
    cause: Cause | None = None


@dataclass(frozen=True)
class RunResult:
    """What a run's log says. `note` is why it says less than it should."""

    parts: Sequence[FailedPart]
    succeeded_assets: Sequence[str] = ()
    note: str | None = None


@dataclass
class Plans:
    """The plans of runs, each read once. Runs of a backfill share a plan."""

    instance: dg.DagsterInstance
    _by_id: dict[str, Plan] = field(default_factory=dict)

    def of(self, run: dg.DagsterRun) -> Plan:
        """Return the steps of a run, empty when its plan is not stored."""
        snapshot_id = run.execution_plan_snapshot_id
        if snapshot_id is None:
            return {}
        if snapshot_id not in self._by_id:
            self._by_id[snapshot_id] = _plan(self.instance, snapshot_id)
        return self._by_id[snapshot_id]


def _plan(instance: dg.DagsterInstance, snapshot_id: str) -> Plan:
    try:
        snapshot: Any = instance.get_execution_plan_snapshot(snapshot_id)
    except Exception:  # noqa: BLE001
        # Not readable by this version of Dagster. The run's tags and location still name the owner.
        return {}
    if snapshot is None:
        return {}
    return {
        step.key: PlannedStep(
            owner=step.tags.get(OWNER_TAG) if step.tags else None,
            asset_keys=tuple(
                output.properties.asset_key.to_user_string()
                for output in step.outputs
                if output.properties is not None and output.properties.asset_key is not None
            ),
            check_names=tuple(
                check_name(key.asset_key, key.name)
                for output in step.outputs
                if output.properties is not None and (key := output.properties.asset_check_key) is not None
            ),
        )
        for step in snapshot.steps
    }


def check_name(asset_key: dg.AssetKey, name: str) -> str:
    """Return the name of an asset check as people write it."""
    return f"{asset_key.to_user_string()}:{name}"


def only_owner(plan: Plan) -> tuple[str | None] | None:
    """Return the one owner of all steps, in a tuple because it may be None; None when steps have several owners."""
    owners = {step.owner for step in plan.values()}
    return (owners.pop(),) if len(owners) == 1 else None


def read_run(instance: dg.DagsterInstance, run: dg.DagsterRun, plan: Plan, redact: Callable[[str], str]) -> RunResult:
    """Return what failed in a run, by owner: at least one part. A log that cannot be read becomes a note."""
    try:
        records = instance.get_records_for_run(
            run.run_id, of_type={dg.DagsterEventType.STEP_FAILURE}, limit=MAX_FAILED_STEPS
        ).records
        events = [one.event_log_entry.dagster_event for one in records]
        failed = {
            event.step_key: cause_of(event.step_failure_data.error, redact)
            for event in events
            if event is not None and event.step_key is not None
        }
        if not failed:
            return _without_steps(instance, run, plan, redact)
        finished = _finished_steps(instance, run) if len(plan) > len(failed) else set()
    except Exception as error:  # noqa: BLE001
        # In doubt, notify: with fewer facts, and with the reason.
        return RunResult(
            parts=[FailedPart(only[0] if (only := only_owner(plan)) else None)],
            note=f"The run's log could not be read ({type(error).__name__}), so the failed steps are unknown.",
        )
    return RunResult(
        parts=_parts(failed, plan),
        succeeded_assets=tuple(key for step in finished - set(failed) for key in _planned(plan, step).asset_keys),
    )


def _without_steps(
    instance: dg.DagsterInstance, run: dg.DagsterRun, plan: Plan, redact: Callable[[str], str]
) -> RunResult:
    """Return what failed in a run that failed outside its steps, as in a crash: every step that did not finish."""
    finished = _finished_steps(instance, run)
    records = instance.get_records_for_run(run.run_id, of_type={dg.DagsterEventType.RUN_FAILURE}, limit=1).records
    cause = None
    if records and (event := records[0].event_log_entry.dagster_event) is not None:
        # A run that run monitoring marked as failed has a message and no such data.
        error = getattr(event.event_specific_data, "error", None)
        cause = cause_of(error, redact) or Cause("Run failed", shortened(redact(event.message or "")))
    unfinished = dict.fromkeys((key for key in plan if key not in finished), cause)
    succeeded_assets = tuple(key for step in finished for key in _planned(plan, step).asset_keys)
    return RunResult(
        parts=_parts(unfinished, plan) or [FailedPart(None, cause=cause)], succeeded_assets=succeeded_assets
    )


def _finished_steps(instance: dg.DagsterInstance, run: dg.DagsterRun) -> set[str]:
    records = instance.get_records_for_run(run.run_id, of_type={dg.DagsterEventType.STEP_SUCCESS}).records
    events = (one.event_log_entry.dagster_event for one in records)
    return {event.step_key for event in events if event is not None and event.step_key is not None}


def _parts(causes: Mapping[str, Cause | None], plan: Plan) -> list[FailedPart]:
    by_owner: dict[str | None, list[str]] = {}
    for step_key in causes:
        by_owner.setdefault(_planned(plan, step_key).owner, []).append(step_key)
    return [
        FailedPart(
            owner=owner,
            step_keys=tuple(keys),
            asset_keys=tuple(dict.fromkeys(asset for key in keys for asset in _planned(plan, key).asset_keys)),
            cause=next((cause for key in keys if (cause := causes[key]) is not None), None),
        )
        for owner, keys in by_owner.items()
    ]


def _planned(plan: Plan, step_key: str) -> PlannedStep:
    """Return a step of the plan. The steps of a dynamic output are planned under one name."""
    return plan.get(step_key) or plan.get(re.sub(r"\[[^\]]*\]", "[?]", step_key)) or PlannedStep(None)


def cause_of(error: "SerializableErrorInfo | None", redact: Callable[[str], str]) -> Cause | None:
    """Return the error of the team's code inside the one that Dagster reports, redacted and then shortened."""
    if error is None:
        return None
    while error.cause is not None and WRAPPERS.fullmatch(error.cls_name or ""):
        error = error.cause
    error_class = error.cls_name or "Error"
    # Dagster stores the message with the class before it, as Python prints it.
    message = re.sub(rf"^(?:[\w.]+\.)?{re.escape(error_class)}: ", "", error.message.strip())
    return Cause(shortened(redact(error_class), 200), shortened(redact(message)))


def shortened(text: str, characters: int = MAX_MESSAGE_CHARACTERS) -> str:
    """Return the text, without its middle when it is longer than that. Redact it first."""
    if len(text) <= characters:
        return text
    half = (characters - len(CUT)) // 2
    return text[:half] + CUT + text[-half:]
