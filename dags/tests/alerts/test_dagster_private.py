"""Pins what the alert engine takes from Dagster without a promise: a new version that differs fails here first."""

import datetime as dt

import dagster as dg
import pytest

from dags.alerts import dagster_private
from dags.alerts.dagster_private import UndecodableEventError
from dags.alerts.ingest import EVENT_TYPES
from dags.tests.alerts.site import Site
from dags.tests.alerts.world import asset_job, op_job

ASSETS = (("x", "team-a"),)


def test_heads_are_the_events_of_the_types_in_order_with_their_times(site: Site) -> None:
    job = op_job("plain")
    failed = site.world.fail(job)
    site.world.forward(5)
    succeeded = site.world.succeed(job)
    site.world.forward(5)
    checked = site.world.check(asset_job(ASSETS), "x", "rows", passed=True)
    canceled = site.world.cancel(job)
    heads = dagster_private.event_heads(site.world.instance, EVENT_TYPES, 0, 100)
    assert [(head.run_id, head.event_type) for head in heads] == [
        (failed, "PIPELINE_FAILURE"),
        (succeeded, "PIPELINE_SUCCESS"),
        (checked, "ASSET_CHECK_EVALUATION"),
        (checked, "PIPELINE_SUCCESS"),
        (canceled, "PIPELINE_CANCELED"),
    ]
    assert {dg.DagsterEventType(head.event_type) for head in heads} == set(EVENT_TYPES)
    assert heads[-1].at == site.world.now
    assert dagster_private.event_heads(site.world.instance, EVENT_TYPES, heads[0].event_id, 2) == heads[1:3]


def test_texts_decode_to_the_events(site: Site) -> None:
    run_id = site.world.fail(op_job("plain"))
    (head,) = dagster_private.event_heads(site.world.instance, EVENT_TYPES, 0, 100)
    texts = dagster_private.event_texts(site.world.instance, [head.event_id, 10**9])
    assert list(texts) == [head.event_id]
    entry = dagster_private.decoded(texts[head.event_id])
    assert (entry.run_id, entry.job_name) == (run_id, "plain")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"__class__": "Unheard"}', '{"__class__": "DagsterRun"}'])
def test_a_text_that_is_no_event_is_undecodable_and_nothing_else(text: str) -> None:
    with pytest.raises(UndecodableEventError):
        dagster_private.decoded(text)


def test_the_beginning_is_found_by_time(site: Site) -> None:
    instance, start = site.world.instance, site.world.now
    assert dagster_private.last_event_id_before(instance, EVENT_TYPES, start) == 0
    site.world.fail(op_job("plain"))
    site.world.forward(60)
    site.world.fail(op_job("plain"))
    first, second = dagster_private.event_heads(instance, EVENT_TYPES, 0, 100)
    between = start + dt.timedelta(seconds=30)
    assert dagster_private.last_event_id_before(instance, EVENT_TYPES, start) < first.event_id
    assert first.event_id <= dagster_private.last_event_id_before(instance, EVENT_TYPES, between) < second.event_id
    late = dagster_private.last_event_id_before(instance, EVENT_TYPES, start + dt.timedelta(days=1))
    assert late >= second.event_id


def test_only_an_instance_in_postgres_has_an_address(site: Site) -> None:
    url = dagster_private.storage_url(site.world.instance)
    assert (url is not None) == (site.store.dialect.name == "postgresql")
