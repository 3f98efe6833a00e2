from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest
from dagster_shared.error import SerializableErrorInfo

from dags.alerts.steps import MAX_MESSAGE_CHARACTERS, Plans, cause_of, only_owner, read_run, shortened
from dags.alerts.values import Cause
from dags.common.owners import JobOwners, owned_by, owner_tags

INGESTION, CLICKHOUSE = JobOwners.TEAM_INGESTION, JobOwners.TEAM_CLICKHOUSE


def boom() -> None:
    raise ValueError("the user's own words")


@dg.asset(**owned_by(INGESTION), op_tags=owner_tags(INGESTION))
def good() -> None: ...


@dg.asset(**owned_by(INGESTION), op_tags=owner_tags(INGESTION))
def bad() -> None:
    boom()


@dg.multi_asset(
    specs=[dg.AssetSpec(name, **owned_by(CLICKHOUSE)) for name in ("left", "right")], op_tags=owner_tags(CLICKHOUSE)
)
def pair() -> tuple[int, int]:
    boom()
    return 1, 2


@dg.asset_check(asset=good, op_tags=owner_tags(CLICKHOUSE), metadata=owner_tags(CLICKHOUSE))
def good_is_good() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@dg.op(tags=owner_tags(CLICKHOUSE), out=dg.DynamicOut())
def numbers() -> Any:
    for number in range(3):
        yield dg.DynamicOutput(number, str(number))


@dg.op(tags=owner_tags(INGESTION))
def odd_fails(number: int) -> None:
    if number % 2:
        boom()


@dg.op(tags=owner_tags(CLICKHOUSE), retry_policy=dg.RetryPolicy(max_retries=1))
def tries_again() -> None:
    boom()


@dg.op(tags=owner_tags(CLICKHOUSE))
def says_why() -> None:
    raise dg.Failure("the source is empty")


@dg.job
def dynamic_job() -> None:
    numbers().map(odd_fails)


@dg.job
def other_job() -> None:
    tries_again()
    says_why()


DEFINITIONS = dg.Definitions(
    assets=[good, bad, pair],
    asset_checks=[good_is_good],
    jobs=[dynamic_job, other_job, dg.define_asset_job("assets_job", selection="*")],
)


def unchanged(text: str) -> str:
    return text


def ran(instance: dg.DagsterInstance, job: str) -> dg.DagsterRun:
    """A run that is really executed."""
    result = DEFINITIONS.resolve_job_def(job).execute_in_process(instance=instance, raise_on_error=False)
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    return run


@pytest.fixture
def instance() -> Any:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def test_failed_steps_are_grouped_by_owner_with_their_assets_and_the_users_error(instance: dg.DagsterInstance) -> None:
    run = ran(instance, "assets_job")
    result = read_run(instance, run, Plans(instance).of(run), unchanged)
    by_owner = {part.owner: part for part in result.parts}
    assert set(by_owner) == {"team-ingestion", "team-clickhouse"}
    assert by_owner["team-ingestion"].asset_keys == ("bad",)
    assert by_owner["team-clickhouse"].asset_keys == ("left", "right")
    assert by_owner["team-clickhouse"].step_keys == ("pair",)
    assert {part.cause for part in result.parts} == {Cause("ValueError", "the user's own words")}
    assert result.succeeded_assets == ("good",)
    assert result.note is None


def test_the_plan_knows_owner_assets_and_checks_of_each_step(instance: dg.DagsterInstance) -> None:
    run = ran(instance, "assets_job")
    plan = Plans(instance).of(run)
    assert {key: step.owner for key, step in plan.items()} == {
        "good": "team-ingestion",
        "bad": "team-ingestion",
        "pair": "team-clickhouse",
        "good_good_is_good": "team-clickhouse",
    }
    assert plan["good_good_is_good"].check_names == ("good:good_is_good",)
    assert only_owner(plan) is None


def test_a_step_of_a_dynamic_output_has_the_owner_of_its_op(instance: dg.DagsterInstance) -> None:
    run = ran(instance, "dynamic_job")
    (part,) = read_run(instance, run, Plans(instance).of(run), unchanged).parts
    assert (part.owner, part.step_keys) == ("team-ingestion", ("odd_fails[1]",))


def test_errors_that_dagster_wraps_are_unwrapped(instance: dg.DagsterInstance) -> None:
    run = ran(instance, "other_job")
    plan = Plans(instance).of(run)
    assert only_owner(plan) == ("team-clickhouse",)
    records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    events = [record.event_log_entry.dagster_event for record in records]
    causes = {event.step_key: cause_of(event.step_failure_data.error, unchanged) for event in events if event}
    assert causes["tries_again"] == Cause("ValueError", "the user's own words")
    assert causes["says_why"] == Cause("Failure", "the source is empty")


def test_a_log_that_cannot_be_read_becomes_a_note_and_no_error(instance: dg.DagsterInstance) -> None:
    run = ran(instance, "other_job")

    class Broken:
        def get_records_for_run(self, *_: object, **__: object) -> None:
            raise OSError("the disk is gone")

    result = read_run(Broken(), run, Plans(instance).of(run), unchanged)  # type: ignore[arg-type]
    assert [part.owner for part in result.parts] == ["team-clickhouse"]
    assert "OSError" in str(result.note)


def test_a_plan_that_is_not_stored_is_empty(instance: dg.DagsterInstance) -> None:
    plans = Plans(instance)
    assert plans.of(dg.DagsterRun(job_name="other_job")) == {}
    assert plans.of(dg.DagsterRun(job_name="other_job", execution_plan_snapshot_id="gone")) == {}


def test_an_error_is_redacted_before_it_is_shortened() -> None:
    secret = "s" * 100
    error = SerializableErrorInfo(f"ValueError: {'a' * 1950}{secret}{'b' * 9000}", [], "ValueError")
    redact: Callable[[str], str] = lambda text: text.replace(secret, "[redacted]")  # noqa: E731
    cause = cause_of(error, redact)
    assert cause is not None
    assert "sss" not in cause.message
    assert len(cause.message) <= MAX_MESSAGE_CHARACTERS


def test_head_and_tail_of_a_long_text_are_kept() -> None:
    text = "head " + "x" * 10_000 + " tail"
    short = shortened(text, 100)
    assert len(short) <= 100
    assert short.startswith("head")
    assert short.endswith("tail")
