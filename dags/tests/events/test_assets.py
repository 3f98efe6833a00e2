from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pytest

from dags.common.settings import Settings, SettingsError
from dags.events.assets import events
from dags.events.checks import few_events_are_rejected
from dags.events.jobs import load_events_job, watch_event_objects
from dags.events.resource import EventSource, EventSourceResource, event_source_from_settings
from dags.tests.events.world import VISITOR_HASH_KEY, World, event, lines, log_line
from dags.tests.resources import clickhouse_resource, postgres_resource, s3_resource


@dataclass(frozen=True)
class Platform:
    """Runs the real job in a real Dagster instance."""

    world: World
    instance: dg.DagsterInstance

    def resources(self) -> dict[str, Any]:
        source = EventSource(self.world.storage, VISITOR_HASH_KEY)

        class GivenEventSource(EventSourceResource):
            def source(self) -> EventSource:
                return source

        return {
            "clickhouse": clickhouse_resource(self.world.cluster),
            "postgres": postgres_resource(self.world.postgres),
            "s3": s3_resource(self.world.s3),
            "event_source": GivenEventSource(),
        }

    def run(self, config: Mapping[str, Any], **check: Any) -> dg.ExecuteInProcessResult:
        definitions = dg.Definitions(
            assets=[events],
            asset_checks=[few_events_are_rejected],
            jobs=[load_events_job],
            resources=self.resources(),
        )
        ops: dict[str, Any] = {"events": {"config": dict(config)}}
        if check:
            ops["events_few_events_are_rejected"] = {"config": check}
        return definitions.resolve_job_def("load_events_job").execute_in_process(
            instance=self.instance, run_config={"ops": ops}, raise_on_error=False
        )

    def metadata(self) -> dict[str, Any]:
        found = self.instance.get_latest_materialization_event(dg.AssetKey("events"))
        assert found is not None
        materialization = found.asset_materialization
        assert materialization is not None
        return {name: value.value for name, value in materialization.metadata.items()}


@pytest.fixture
def platform(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    monkeypatch.setenv("DEBUG", "1")
    with dg.DagsterInstance.ephemeral() as instance:
        yield Platform(world, instance)


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event_,) = [one for one in result.all_events if one.is_step_failure]
    data = event_.step_failure_data.user_failure_data
    return (data.description if data else "") or ""


def test_a_run_by_prefix_loads_the_objects_under_it_and_reports_the_numbers(platform: Platform) -> None:
    world = platform.world
    world.put("a.jsonl", lines([*(event(number) for number in range(200)), "bad"]))
    world.put("b.log", "".join(f"{log_line(target)}\n" for target in ("/", "/a.png", "/b.css")).encode())
    world.put("c.jsonl", lines([event(1)]), team=2)
    result = platform.run({"prefix": "events/team=1/"})
    assert result.success
    metadata = platform.metadata()
    expected = {
        "objects_loaded": 2,
        "objects_already_loaded": 0,
        "objects_not_loaded": 0,
        "lines": 204,
        "rows": 201,
        "rejected_rows": 1,
        "skipped_rows": 2,
    }
    assert {name: metadata[name] for name in expected} == expected
    assert "| asset | 2 |" in metadata["skipped_by_rule"]
    assert "| events/team=1/a.jsonl | 200 | 1 | 0 |" in metadata["objects"]
    assert world.rows("SELECT DISTINCT run_id FROM ingested_objects") == [(result.run_id,)]
    assert platform.run({"prefix": "events/"}).success
    assert platform.metadata()["objects_already_loaded"] == 2
    assert platform.metadata()["objects_loaded"] == 1


def test_a_run_of_many_batches_loads_them_all(platform: Platform) -> None:
    for number in range(7):
        platform.world.put(f"{number}.jsonl", lines([event(number)]))
    assert platform.run({"prefix": "events/", "objects_per_batch": 2}).success
    assert platform.metadata()["objects_loaded"] == 7


def test_a_requested_run_of_the_sensor_loads_the_object(platform: Platform) -> None:
    platform.world.put("a.jsonl", lines([event(1)]))
    repository = dg.Definitions(
        jobs=[load_events_job], assets=[events], sensors=[watch_event_objects], resources=platform.resources()
    )
    with dg.build_sensor_context(
        instance=platform.instance, definitions=repository, resources=platform.resources()
    ) as context:
        ticked = watch_event_objects(context)
    assert isinstance(ticked, dg.SensorResult)
    (request,) = ticked.run_requests or []
    result = platform.run(request.run_config["ops"]["events"]["config"])
    assert result.success
    assert platform.world.rows("SELECT count() FROM events") == [(1,)]


def test_an_unreadable_object_fails_the_run_by_name_and_the_loaded_objects_are_recorded(platform: Platform) -> None:
    key = platform.world.put("bad.jsonl", b"no json\n")
    platform.world.put("good.jsonl", lines([event(1)]))
    result = platform.run({"objects": [{"key": key}, {"key": "events/team=1/good.jsonl"}, {"key": "events/odd"}]})
    assert not result.success
    message = failure(result)
    assert "2 objects were not loaded, all others were" in message
    assert f"- {key}: none of its 1 lines can be read: not JSON" in message
    assert "- events/odd: events/odd names no team" in message
    assert not any(one.event_type_value == "STEP_UP_FOR_RETRY" for one in result.all_events)
    assert platform.metadata()["objects_loaded"] == 1
    assert platform.world.rows("SELECT count() FROM events") == [(1,)]


@pytest.mark.parametrize(
    "config", [{}, {"prefix": "events/", "objects": [{"key": "events/team=1/a.jsonl"}]}, {"prefix": "x"}]
)
def test_a_run_config_with_no_or_two_selections_is_refused(platform: Platform, config: dict[str, Any]) -> None:
    assert "prefix" in failure(platform.run(config))


def test_the_check_fails_above_the_threshold_and_names_the_team(platform: Platform) -> None:
    platform.world.put("a.jsonl", lines([*(event(number) for number in range(98)), "bad", "bad"]), team=4)
    platform.world.put("b.jsonl", lines([event(number) for number in range(1000)]), team=5)
    result = platform.run({"prefix": "events/"})
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert "for team 4 (2.00 percent)" in str(check.description)
    assert check.metadata["rejected_rows"].value == 2
    result = platform.run({"prefix": "events/"}, hours=1, maximum_rejected_percent=2.5)
    (check,) = result.get_asset_check_evaluations()
    assert (check.passed, check.metadata["rejected_rows"].value) == (True, 2)


def test_the_check_judges_only_the_objects_of_its_run(platform: Platform) -> None:
    platform.world.put("a.jsonl", lines([event(1), "bad"]), team=4)
    (check,) = platform.run({"prefix": "events/team=4/"}).get_asset_check_evaluations()
    assert not check.passed
    platform.world.put("b.jsonl", lines([event(2)]), team=5)
    (check,) = platform.run({"prefix": "events/team=5/"}).get_asset_check_evaluations()
    assert (check.passed, check.metadata["rejected_rows"].value) == (True, 0)


def test_every_statement_carries_its_owner(platform: Platform) -> None:
    platform.world.put("a.jsonl", lines([event(1)]))
    result = platform.run({"prefix": "events/"})
    platform.world.rows("SYSTEM FLUSH LOGS")
    assert platform.world.rows(
        "SELECT countIf(JSONExtractString(log_comment, 'owner') = 'team-ingestion') > 5, "
        "countIf(JSONExtractString(log_comment, 'step') != 'events') FROM system.query_log "
        "WHERE JSONExtractString(log_comment, 'run_id') = %(run_id)s AND is_initial_query "
        "AND JSONExtractString(log_comment, 'step') NOT LIKE '%%rejected%%'",
        run_id=result.run_id,
    ) == [(1, 0)]


def test_the_bucket_of_the_source_may_be_configured(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    assert platform.world.storage.bucket != "other"
    # Another test of this process may have left the settings of its own environment.
    monkeypatch.setattr("dags.events.resource.get_settings", lambda: Settings(debug=True))
    storage = EventSourceResource(bucket="other").source().storage
    assert (storage.bucket, storage.bucket_url.rsplit("/", 1)[1]) == ("other", "other")


def test_the_key_of_the_visitor_hash_is_required() -> None:
    with pytest.raises(SettingsError, match="VISITOR_HASH_KEY"):
        event_source_from_settings(Settings(debug=False, visitor_hash_key=None))


def test_every_field_of_the_run_config_is_described() -> None:
    from dags.events.assets import EventObject, LoadEventsConfig
    from dags.events.checks import RejectedConfig

    for config in (EventObject, LoadEventsConfig, RejectedConfig):
        assert [name for name, field in config.model_fields.items() if not field.description] == []
