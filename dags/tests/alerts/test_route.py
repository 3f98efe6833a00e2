from collections.abc import Mapping

import dagster as dg
import pytest

from dags.alerts.route import channel_of, get_job_owner_for_alert, is_muted, location_of
from dags.alerts.values import Policy
from dags.tests.alerts.world import origin

LOCATIONS = {"web": "team-of-web"}
POLICY = Policy({"team-a": "#a"}, "#default")


def run(tags: Mapping[str, str], location: str | None = "web") -> dg.DagsterRun:
    where = None if location is None else origin("a_job", location)
    return dg.DagsterRun(job_name="a_job", tags=dict(tags), remote_job_origin=where)


def test_the_owner_is_that_of_the_step_else_of_the_run_else_of_the_location_else_none() -> None:
    tagged = run({"owner": "team-of-run"})
    assert get_job_owner_for_alert(tagged, "team-of-step", LOCATIONS.get) == "team-of-step"
    assert get_job_owner_for_alert(tagged, None, LOCATIONS.get) == "team-of-run"
    assert get_job_owner_for_alert(run({}), None, LOCATIONS.get) == "team-of-web"
    assert get_job_owner_for_alert(run({}, "elsewhere"), None, LOCATIONS.get) is None
    assert get_job_owner_for_alert(run({}, None)) is None


def test_a_run_of_a_script_has_no_location() -> None:
    assert location_of(run({})) == "web"
    assert location_of(run({}, None)) is None


def test_unowned_failures_and_owners_without_a_channel_get_the_default_channel() -> None:
    assert [channel_of(owner, POLICY) for owner in ("team-a", "team-unheard-of", None)] == [
        "#a",
        "#default",
        "#default",
    ]


@pytest.mark.parametrize(
    ("value", "muted"), [("true", True), ("True", True), ("false", False), ("1", False), ("", False)]
)
def test_only_the_value_true_mutes(value: str, *, muted: bool) -> None:
    assert is_muted({"disable_slack_notifications": value}) is muted
    assert not is_muted({})
