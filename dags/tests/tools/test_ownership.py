import subprocess
import sys
from pathlib import Path

import dagster as dg
from click.testing import CliRunner

from dags.common.owners import JobOwners, owned_by
from tools.ownership import CODEOWNERS, HEAD, NO_OWNER, ORGANIZATION, ROOT, codeowners, main, owned, report


def lines_of(*arguments: str) -> list[str]:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_the_command_prints_each_team_with_its_channel_location_and_definitions() -> None:
    command = [sys.executable, "-m", "tools.ownership"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    for owner in JobOwners:
        assert owner.value in lines
    for line in (
        "  channel     #alerts-ingestion",
        "  location    ingestion",
        "  asset       events",
        "  job         check_event_objects_job",
        "              load_events_job",
        "  schedule    web_analytics_daily_schedule",
        "  sensor      watch_event_objects",
        "  asset check events:every_object_can_be_loaded",
    ):
        assert line in lines


def test_the_report_can_be_limited_to_one_team() -> None:
    lines = lines_of("--team", "team-ingestion")
    assert lines[0] == "team-ingestion"
    assert not [line for line in lines[1:] if line.startswith("team-")]


def test_an_unknown_team_is_refused_with_the_names_of_the_known_ones() -> None:
    result = CliRunner().invoke(main, ["--team", "team-x"])
    assert result.exit_code == 2
    assert "'team-clickhouse'" in result.output


def test_a_definition_without_owner_is_listed_under_no_owner() -> None:
    @dg.job(**owned_by(JobOwners.TEAM_CLICKHOUSE))
    def lift_job() -> None: ...

    found = owned({"cranes": dg.Definitions(jobs=[lift_job], assets=[dg.AssetSpec("beams")])})
    assert found["team-clickhouse"] == {"job": ["lift_job"]}
    assert found[NO_OWNER] == {"asset": ["beams"]}
    assert report(NO_OWNER, None, [], found[NO_OWNER]).splitlines() == [
        "no owner",
        "  channel     none",
        "  location    none",
        "  asset       beams",
    ]


def test_codeowners_matches_the_locations() -> None:
    expected = codeowners(ROOT)
    assert CODEOWNERS.read_text() == expected, f"{CODEOWNERS} does not match the locations: run `make snapshot`"
    assert lines_of("codeowners") == expected.splitlines()


def test_each_team_owns_its_location_its_pipelines_and_their_tests(tmp_path: Path) -> None:
    dags = tmp_path / "dags"
    for directory in ("locations", "common", "cranes", "tests/cranes", "bolts"):
        (dags / directory).mkdir(parents=True)
    for file in ("beams.py", "tests/test_beams.py", "locations/__init__.py"):
        (dags / file).touch()
    imports = {
        "building": "from dags.cranes.assets import crane\nfrom dags.locations import build_definitions",
        "steel": "from dags import beams\nimport dags.bolts.job\nfrom dags.common.owners import JobOwners",
        "welding": "from dags.beams import weld",
        "unknown": "from dags.cranes import nothing",
    }
    for name, text in imports.items():
        (dags / "locations" / f"{name}.py").write_text(text)
    team_of = {"building": "team-building", "steel": "team-steel", "welding": "team-welding"}
    written = codeowners(tmp_path, team_of.get)
    assert [line.split() for line in written.removeprefix(HEAD).splitlines()] == [
        ["*", f"@{ORGANIZATION}/team-data-platform"],
        ["/dags/locations/building.py", f"@{ORGANIZATION}/team-building"],
        ["/dags/cranes/", f"@{ORGANIZATION}/team-building"],
        ["/dags/tests/cranes/", f"@{ORGANIZATION}/team-building"],
        ["/dags/locations/steel.py", f"@{ORGANIZATION}/team-steel"],
        ["/dags/beams.py", f"@{ORGANIZATION}/team-steel", f"@{ORGANIZATION}/team-welding"],
        ["/dags/tests/test_beams.py", f"@{ORGANIZATION}/team-steel", f"@{ORGANIZATION}/team-welding"],
        ["/dags/bolts/", f"@{ORGANIZATION}/team-steel"],
        ["/dags/locations/welding.py", f"@{ORGANIZATION}/team-welding"],
    ]
