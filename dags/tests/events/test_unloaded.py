import dagster as dg
import pytest

from dags.events.assets import events
from dags.events.checks import every_object_can_be_loaded
from dags.events.jobs import check_event_objects_job
from dags.events.objects import list_all
from dags.events.unloaded import Cause, find_unloaded
from dags.tests.events.test_assets import Platform, platform
from dags.tests.events.world import World, event, lines, log_line

__all__ = ["platform"]


def unloaded(world: World) -> dict[str, tuple[Cause, str]]:
    versions = list_all(world.s3, world.storage.bucket, "events/")
    return {one.key.rsplit("/", 1)[1]: (one.cause, one.reason) for one in find_unloaded(world.cluster, versions)}


def test_every_object_without_events_is_named_with_its_cause(world: World) -> None:
    world.put("good.jsonl", lines([event(1)]))
    world.put("bad.jsonl", b"no json\n")
    world.put("zero.log", b"")
    world.put("blank.log", b"\n")
    world.put("assets.log", f"{log_line('/a.png')}\n".encode())
    world.put("zero.parquet", b"")
    world.load()
    world.put("waiting.jsonl", lines([event(2)]))
    world.put("report.csv", b"a,b\n")
    world.put("", b"")
    assert {name: cause for name, (cause, _) in unloaded(world).items()} == {
        "bad.jsonl": Cause.UNREADABLE,
        "zero.log": Cause.ZERO_BYTES,
        "blank.log": Cause.NO_EVENTS,
        "assets.log": Cause.NO_EVENTS,
        "zero.parquet": Cause.ZERO_BYTES,
        "waiting.jsonl": Cause.WAITING,
        "report.csv": Cause.WRONG_NAME,
    }
    reasons = {name: reason for name, (_, reason) in unloaded(world).items()}
    assert "no known suffix" in reasons["report.csv"]
    assert reasons["bad.jsonl"].endswith("not JSON")
    assert reasons["assets.log"] == "1 lines. asset: 1"


@pytest.mark.parametrize("name", ["good.jsonl", "report.csv"])
def test_the_check_fails_with_counts_and_names_when_an_object_cannot_be_loaded(platform: Platform, name: str) -> None:
    platform.world.put(name, lines([event(1)]))
    definitions = dg.Definitions(
        assets=[events],
        asset_checks=[every_object_can_be_loaded],
        jobs=[check_event_objects_job],
        resources=platform.resources(),
    )
    job = definitions.resolve_job_def("check_event_objects_job")
    (found,) = job.execute_in_process(instance=platform.instance).get_asset_check_evaluations()
    assert found.passed is (name == "good.jsonl")
    counts = {key: value.value for key, value in found.metadata.items()}
    assert counts[f"objects: {Cause.WAITING.value}"] == int(found.passed)
    assert counts[f"objects: {Cause.WRONG_NAME.value}"] == int(not found.passed)
    assert name in str(counts["objects"])
    if not found.passed:
        assert "events/team=1/report.csv has no known suffix" in str(found.description)
