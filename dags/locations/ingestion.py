"""Events from object storage into ClickHouse."""

from dags.common.owners import JobOwners
from dags.events.assets import events
from dags.events.checks import every_object_can_be_loaded, few_events_are_rejected
from dags.events.jobs import (
    check_event_objects_job,
    check_event_objects_schedule,
    load_events_job,
    watch_event_objects,
)
from dags.events.resource import EventSourceResource
from dags.locations import build_definitions, resources

defs = build_definitions(
    owner=JobOwners.TEAM_INGESTION,
    assets=[events],
    asset_checks=[every_object_can_be_loaded, few_events_are_rejected],
    jobs=[check_event_objects_job, load_events_job],
    schedules=[check_event_objects_schedule],
    sensors=[watch_event_objects],
    resources={**resources, "event_source": EventSourceResource()},
)
