import pytest
import yaml

from tools.scaffold.deployment import add_location
from tools.scaffold.edits import EditError

VALUES = """# Values of the chart.
dagster-user-deployments:
  enabled: true
  deployments:
    # The first defines what all share.
    - name: analytics-platform
      image: &image
        repository: registry.example.com/analytics-platform
        tag: "1"
      dagsterApiGrpcArgs: ["--module-name", "dags.locations.analytics_platform"]
      port: 3030

    # It needs more memory.
    - name: revenue-analytics
      image: *image
      dagsterApiGrpcArgs:
        - "--module-name"
        - "dags.locations.revenue_analytics"
      # Of a day's rates.
      resources: { limits: { memory: 1Gi } }
      labels: { owner: team-revenue-analytics, location: 'revenue_analytics' }
      port: 3030
scheduler:
  type: DagsterDaemonScheduler
"""


def deployments(values: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = yaml.safe_load(values)["dagster-user-deployments"]["deployments"]
    return found


@pytest.mark.parametrize(("location", "place"), [("new_growth", 1), ("user_growth", 2)])
def test_a_location_gets_an_entry_like_its_neighbours_in_its_place(location: str, place: int) -> None:
    added = add_location(VALUES, location)
    name = location.replace("_", "-")
    before, after = deployments(VALUES), deployments(added)
    assert after[place] == {
        **before[1],
        "name": name,
        "dagsterApiGrpcArgs": ["--module-name", f"dags.locations.{location}"],
        "labels": {"owner": f"team-{name}", "location": location},
    }
    del after[place]
    assert after == before
    assert add_location(added, location) == added


def test_what_refers_to_an_anchor_comes_behind_it() -> None:
    assert [one["name"] for one in deployments(add_location(VALUES, "ads"))] == [
        "analytics-platform",
        "ads",
        "revenue-analytics",
    ]


def test_comments_and_quotes_stay_and_none_is_copied() -> None:
    added = add_location(VALUES, "new_growth")
    lines = added.splitlines()
    assert [line for line in VALUES.splitlines() if line not in lines] == []
    assert added.count("#") == VALUES.count("#")
    assert "location: 'new_growth'" in added
    assert "      port: 3030\n    - name: new-growth\n" in added


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ("scheduler: {}\n", "no list dagster-user-deployments.deployments"),
        ("dagster-user-deployments: { deployments: [] }\n", "no list"),
        ("dagster-user-deployments:\n  deployments:\n    - name: a\n      image: &image x\n", "defines an anchor"),
    ],
)
def test_values_without_the_place_are_refused(values: str, problem: str) -> None:
    with pytest.raises(EditError, match=problem):
        add_location(values, "growth")


WITH_SERVERS = """
base: &base { port: 3030, labels: { location: shared } }
dagster-user-deployments:
  deployments:
    - <<: *base
      name: shared
      dagsterApiGrpcArgs: [-m, dags.locations.shared]
dagsterWebserver:
  workspace:
    servers:
      - { host: shared, port: 3030, name: shared }
      - { host: web-analytics, port: 3030, name: web_analytics }
"""


def test_the_web_server_gets_the_location_under_its_own_name() -> None:
    added = add_location(WITH_SERVERS, "user_growth")
    assert deployments(added)[1]["name"] == "user-growth"
    assert deployments(added)[1]["dagsterApiGrpcArgs"] == ["-m", "dags.locations.user_growth"]
    assert "      - { host: user-growth, port: 3030, name: user_growth }\n      - { host: web-analytics" in added
    # What the alias stands for stays as it is.
    assert added.startswith(WITH_SERVERS.split("dagsterWebserver", maxsplit=1)[0].rstrip())
    assert add_location(added, "user_growth") == added
