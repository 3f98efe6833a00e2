"""Rules that need all locations, the alert policy or the instance. A policy returns its problems with their remedies.

`policies.py` has the rules for each location by itself.
"""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg

from dags.common.inventory import assets_of, jobs_of, pools_of, schedules_of
from dags.common.owners import OWNER_TAG, team_of_location
from dags.common.tags import BACKFILL_TAG, MAX_RUNTIME_TAG

Locations = Mapping[str, dg.Definitions]

OWNERS = "dags/common/owners.py"
SLACK_ALERTS = "dags/slack_alerts.py"
DAGSTER_YAML = ".dagster_home/dagster.yaml"

MIN_HEAVY_SECONDS = 3600
# Long enough for every weekday, every end of a month, a leap day, and four clock changes.
FIRST_TICK, LAST_TICK = dt.datetime(2027, 1, 1), dt.datetime(2029, 1, 1)  # noqa: DTZ001 - what a clock on the wall shows
ONE_DAY = dt.timedelta(days=1)


def every_owner_has_a_channel(owners: Sequence[str], channels: Mapping[str, str]) -> list[str]:
    """A channel of its own, and every channel has a team."""
    problems = [
        f'{SLACK_ALERTS}: {owner} has no channel: add it to notification_channel_per_team, as "#alerts-…"'
        for owner in owners
        if not channels.get(owner, "").startswith("#")
    ]
    problems += [
        f"{SLACK_ALERTS}: {owner} has a channel and is not in JobOwners: remove it from notification_channel_per_team"
        for owner in channels
        if owner not in owners
    ]
    problems += [
        f"{SLACK_ALERTS}: {one} and {other} share the channel {channels[one]}: give each its own, so that each "
        "sees the alerts of its own work only"
        for one, other in combinations(channels, 2)
        if channels[one] == channels[other]
    ]
    return problems


def every_owner_has_a_location(
    owners: Sequence[str], locations: Sequence[str], teams_without_location: Mapping[str, str]
) -> list[str]:
    """`teams_without_location` has the reason for each team that owns no location."""
    having = {team_of_location(location) for location in locations}
    problems = [
        f"{OWNERS}: {owner} has no location: run make new-team; or give the reason in TEAMS_WITHOUT_LOCATION of "
        "dags/tests/policy/test_shared_policies.py"
        for owner in owners
        if owner not in having and not teams_without_location.get(owner)
    ]
    problems += [
        f"dags/tests/policy/test_shared_policies.py: {owner} has a location now: remove it from TEAMS_WITHOUT_LOCATION"
        for owner in teams_without_location
        if owner in having
    ]
    return problems


def every_location_belongs_to_the_team_that_it_names(
    locations: Locations, other_locations: Mapping[str, str]
) -> list[str]:
    """A failure without an owner of its own is its location's. `other_locations` are not named like their team."""
    problems = [
        f"{OWNERS}: TEAM_OF_OTHER_LOCATIONS names {location}, which is no location: remove it"
        for location in other_locations
        if location not in locations
    ]
    for name, definitions in locations.items():
        stated, expected = definitions.metadata.get(OWNER_TAG), team_of_location(name)
        if stated is None:
            problems.append(f"dags/locations/{name}.py has no owner: define it with build_definitions(owner=…)")
        elif stated.value != expected:
            problems.append(
                f"dags/locations/{name}.py is owned by {stated.value}, and its name says {expected}: name it after its "
                f"team, or add it to TEAM_OF_OTHER_LOCATIONS of {OWNERS}"
            )
    return problems


def thresholds_name_jobs(thresholds: Mapping[str, int], locations: Locations) -> list[str]:
    """Existing jobs, with numbers above the default of 1."""
    names = {job.name for definitions in locations.values() for job in jobs_of(definitions)}
    problems = [
        f"{SLACK_ALERTS}: no job is called {name}: correct or remove it in CONSECUTIVE_FAILURE_THRESHOLDS"
        for name in thresholds
        if name not in names
    ]
    problems += [
        f"{SLACK_ALERTS}: the threshold of {name} is {count}, and 1 is the default: raise or remove it in "
        "CONSECUTIVE_FAILURE_THRESHOLDS"
        for name, count in thresholds.items()
        if count <= 1
    ]
    return problems


def run_limits_name_tags_in_use(instance: Mapping[str, Any], locations: Locations) -> list[str]:
    """A limit on a tag that no run has limits nothing. `instance` is the parsed dagster.yaml."""
    used = _run_tags(locations)
    problems = []
    for limit in instance["concurrency"]["runs"].get("tag_concurrency_limits", []):
        key, value = limit["key"], limit.get("value")
        if key not in used:
            problems.append(f"{DAGSTER_YAML}: no job has the tag {key}, which has a limit: correct or remove the limit")
        elif isinstance(value, str) and key != BACKFILL_TAG and value not in used[key]:
            problems.append(
                f"{DAGSTER_YAML}: no job has the tag {key} with the value {value}, which has a limit: correct or "
                f"remove the limit; values in use: {', '.join(sorted(used[key]))}"
            )
    return problems


def _run_tags(locations: Locations) -> dict[str, set[str]]:
    used: dict[str, set[str]] = {}
    for definitions in locations.values():
        for job in jobs_of(definitions):
            for key, value in job.run_tags.items():
                used.setdefault(key, set()).add(value)
        if any(spec.partitions_def is not None for spec in assets_of(definitions)):
            used.setdefault(BACKFILL_TAG, set())
    return used


def pools_in_use_are_limited(instance: Mapping[str, Any], locations: Locations) -> list[str]:
    """By the default limit, since Dagster keeps the limit of a single pool in its storage and not in a file."""
    in_use = {pool for definitions in locations.values() for pool in pools_of(definitions)}
    limit = instance["concurrency"].get("pools", {}).get("default_limit")
    if not in_use or (isinstance(limit, int) and limit >= 1):
        return []
    pools = ", ".join(sorted(in_use))
    remedy = "set concurrency.pools.default_limit to the maximum number of runs of a pool at a time"
    return [f"{DAGSTER_YAML}: the pools {pools} are in use, and their default limit is {limit}: {remedy}"]


def no_job_may_run_longer_than_the_instance_allows(instance: Mapping[str, Any], locations: Locations) -> list[str]:
    """The tag of a job may lower the limit of the instance and not raise it."""
    max_seconds = instance["run_monitoring"]["max_runtime_seconds"]
    return [
        f"dags/locations/{location}.py: job {job.name} may run {_max_runtime(job)} seconds, above the {max_seconds} of "
        f"run_monitoring.max_runtime_seconds in {DAGSTER_YAML}: lower its {MAX_RUNTIME_TAG}, or split the job"
        for location, definitions in locations.items()
        for job in jobs_of(definitions)
        if _max_runtime(job) > max_seconds
    ]


def _max_runtime(job: dg.JobDefinition) -> int:
    text = str(job.run_tags.get(MAX_RUNTIME_TAG, ""))
    return int(text) if text.isdigit() else 0


def heavy_jobs_do_not_start_together(locations: Locations) -> list[str]:
    """Heavy jobs may run MIN_HEAVY_SECONDS or longer. Two in the same minute compete for memory and disks."""
    starts = {
        schedule.name: (location, _starts(schedule))
        for location, definitions in locations.items()
        for schedule in schedules_of(definitions)
        if _max_runtime(definitions.resolve_job_def(schedule.job_name)) >= MIN_HEAVY_SECONDS
    }
    return [
        f"dags/locations/{starts[one][0]}.py: {one} and {other} of {starts[other][0]} start heavy jobs in the same "
        f"minute, first at {min(together):%Y-%m-%d %H:%M} UTC: move one of them by some minutes"
        for one, other in combinations(starts, 2)
        if (together := starts[one][1] & starts[other][1])
    ]


def _starts(schedule: dg.ScheduleDefinition) -> set[dt.datetime]:
    """Return all ticks of two years in UTC."""
    zone = _zone(schedule)
    ticks = (tick for cron in _crons(schedule) for tick in wall_clock_ticks(cron, FIRST_TICK, LAST_TICK))
    return {tick.replace(tzinfo=zone).astimezone(dt.UTC) for tick in ticks}


def no_schedule_ticks_while_clocks_change(location: str, definitions: dg.Definitions) -> list[str]:
    """No tick in an hour that is skipped or repeated when daylight saving begins or ends."""
    problems = []
    for schedule in schedules_of(definitions):
        odd = next(_odd_ticks(schedule), None)
        if odd is not None:
            problems.append(
                f"dags/locations/{location}.py: schedule {schedule.name} ({', '.join(_crons(schedule))}) ticks at "
                f"{odd:%Y-%m-%d %H:%M} {_zone(schedule).key}, an hour that a clock change skips or repeats: move "
                'it out of that hour, or give it execution_timezone="UTC"'
            )
    return problems


def _odd_ticks(schedule: dg.ScheduleDefinition) -> Iterator[dt.datetime]:
    zone = _zone(schedule)
    days = [FIRST_TICK + n * ONE_DAY for n in range((LAST_TICK - FIRST_TICK).days)]
    for day in days:
        if _offset(day, zone) == _offset(day + ONE_DAY, zone):
            continue
        for cron in _crons(schedule):
            for tick in wall_clock_ticks(cron, day, day + ONE_DAY):
                # The two offsets of a time differ if it is repeated, and if it is skipped.
                if _offset(tick, zone) != _offset(tick.replace(fold=1), zone):
                    yield tick


def _offset(moment: dt.datetime, zone: ZoneInfo) -> dt.timedelta | None:
    return moment.replace(tzinfo=zone).utcoffset()


def wall_clock_ticks(cron: str, first: dt.datetime, end: dt.datetime) -> list[dt.datetime]:
    """Return the ticks of a cron expression from `first` to before `end`, in local time without a zone.

    Dagster's public way to evaluate a cron expression: a time-window partition begins at each tick.
    """
    form = "%Y-%m-%d %H:%M"
    # With the offset, a partition that begins before the end and ends after it counts too.
    partitions = dg.TimeWindowPartitionsDefinition(
        start=first.replace(tzinfo=dt.UTC), fmt=form, cron_schedule=cron, timezone="UTC", end_offset=1
    )
    keys = partitions.get_partition_keys(current_time=end.replace(tzinfo=dt.UTC))
    ticks = [dt.datetime.strptime(key, form) for key in keys]  # noqa: DTZ007 - without a zone on purpose
    return [tick for tick in ticks if tick < end]


def _crons(schedule: dg.ScheduleDefinition) -> Sequence[str]:
    cron = schedule.cron_schedule
    return [cron] if isinstance(cron, str) else list(cron)


def _zone(schedule: dg.ScheduleDefinition) -> ZoneInfo:
    # Dagster's default is UTC.
    return ZoneInfo(schedule.execution_timezone or "UTC")
