"""Events from object storage into ClickHouse."""

from dags.common.owners import JobOwners
from dags.events.assets import events
from dags.events.checks import few_events_are_rejected
from dags.events.jobs import load_events_job, watch_event_objects
from dags.events.resource import EventSourceResource
from dags.locations import build_definitions, resources

defs = build_definitions(
    owner=JobOwners.TEAM_INGESTION,
    assets=[events],
    asset_checks=[few_events_are_rejected],
    jobs=[load_events_job],
    sensors=[watch_event_objects],
    resources={**resources, "event_source": EventSourceResource()},
)
