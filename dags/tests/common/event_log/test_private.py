"""Pins what the reader takes from Dagster without a public interface: a version that differs fails here first."""

import datetime as dt

import dagster as dg
import pytest

from dags.common.event_log import private
from dags.common.event_log.private import UndecodableEventError
from dags.tests.alerts.world import World, asset_job, op_job

EVENT_TYPES = (
    dg.DagsterEventType.RUN_FAILURE,
    dg.DagsterEventType.RUN_SUCCESS,
    dg.DagsterEventType.RUN_CANCELED,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION,
)
ASSETS = (("x", "team-a"),)


def test_heads_are_the_events_of_these_types_in_order_with_their_times(world: World) -> None:
    job = op_job("plain")
    failed = world.fail(job)
    world.forward(5)
    succeeded = world.succeed(job)
    world.forward(5)
    checked = world.check(asset_job(ASSETS), "x", "rows", passed=True)
    canceled = world.cancel(job)
    heads = private.event_heads(world.instance, EVENT_TYPES, 0, 100)
    assert [(head.run_id, head.event_type) for head in heads] == [
        (failed, "PIPELINE_FAILURE"),
        (succeeded, "PIPELINE_SUCCESS"),
        (checked, "ASSET_CHECK_EVALUATION"),
        (checked, "PIPELINE_SUCCESS"),
        (canceled, "PIPELINE_CANCELED"),
    ]
    assert {dg.DagsterEventType(head.event_type) for head in heads} == set(EVENT_TYPES)
    assert heads[-1].at == world.now
    assert private.event_heads(world.instance, EVENT_TYPES, heads[0].event_id, 2) == heads[1:3]


def test_stored_texts_decode_to_events(world: World) -> None:
    run_id = world.fail(op_job("plain"))
    (head,) = private.event_heads(world.instance, EVENT_TYPES, 0, 100)
    texts = private.event_texts(world.instance, [head.event_id, 10**9])
    assert list(texts) == [head.event_id]
    entry = private.decode_event(texts[head.event_id])
    assert (entry.run_id, entry.job_name) == (run_id, "plain")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"__class__": "Unheard"}', '{"__class__": "DagsterRun"}'])
def test_a_text_that_is_no_event_raises_only_undecodable_event_error(text: str) -> None:
    with pytest.raises(UndecodableEventError):
        private.decode_event(text)


def test_the_first_event_id_is_found_by_time(world: World) -> None:
    instance, start = world.instance, world.now
    assert private.last_event_id_before(instance, EVENT_TYPES, start) == 0
    world.fail(op_job("plain"))
    world.forward(60)
    world.fail(op_job("plain"))
    first, second = private.event_heads(instance, EVENT_TYPES, 0, 100)
    between = start + dt.timedelta(seconds=30)
    assert private.last_event_id_before(instance, EVENT_TYPES, start) < first.event_id
    assert first.event_id <= private.last_event_id_before(instance, EVENT_TYPES, between) < second.event_id
    late = private.last_event_id_before(instance, EVENT_TYPES, start + dt.timedelta(days=1))
    assert late >= second.event_id


def test_only_an_instance_in_postgres_has_a_storage_url(world: World, database: str) -> None:
    url = private.storage_url(world.instance)
    assert (url is not None) == (database == "postgres")
