from pathlib import Path

import pytest

from tools.scaffold import team_checks
from tools.scaffold.names import RefusedError
from tools.scaffold.team_checks import locations_of, run_all, selection

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("text", ["web_analytics", "web-analytics", "team-web-analytics"])
def test_a_team_is_found_by_each_of_its_names(text: str) -> None:
    assert locations_of(ROOT, text) == ["web_analytics"]


def test_a_team_whose_location_has_another_name_is_found() -> None:
    assert locations_of(ROOT, "data-platform") == ["shared"]


def test_an_unknown_team_is_refused_with_the_locations_that_exist() -> None:
    with pytest.raises(RefusedError) as caught:
        locations_of(ROOT, "nobody")
    assert "analytics_platform, clickhouse, ingestion" in str(caught.value)
    assert "make new-team TEAM=nobody CHANNEL=#alerts-nobody" in str(caught.value)


def test_the_tests_of_a_team_are_those_of_the_pipelines_that_its_location_imports() -> None:
    assert team_checks.tests_of(ROOT, "clickhouse") == [
        "dags/tests/deletes",
        "dags/tests/maintenance",
        "dags/tests/person_overrides",
    ]


def test_policies_of_other_locations_and_teams_are_left_out_and_shared_ones_run(tmp_path: Path) -> None:
    ids = [
        "ads",
        "ads-a_job",
        "growth",
        "growth_ads",
        "dags.locations.ads",
        "dags.locations.growth_ads",
        "team-ads",
        "team-growth-ads",
        "other",
    ]
    (tmp_path / "test_policies.py").write_text(
        f"import pytest\n\n@pytest.mark.parametrize('one', {ids})\ndef test_one(one):\n    print('ran', one)\n\n"
        "def test_everything():\n    print('ran everything')\n"
    )

    def ran(own: str) -> set[str]:
        expression = selection([own], ["ads", "growth", "growth_ads"])
        assert run_all([["pytest", "-q", "-s", "-k", expression, "--junitxml=report.xml"]], tmp_path) == 0
        report = (tmp_path / "report.xml").read_text()
        return {
            one
            for one in [*ids, "everything"]
            if f"ran {one}\n" in report or f'name="test_one[{one}]"' in report or f'name="test_{one}"' in report
        }

    assert ran("growth_ads") == {"growth_ads", "dags.locations.growth_ads", "team-growth-ads", "other", "everything"}
    assert ran("ads") == {"ads", "ads-a_job", "dags.locations.ads", "team-ads", "other", "everything"}


def test_every_call_runs_and_the_first_failure_is_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    (tmp_path / "works.py").write_text("open('done', 'w').close()")
    assert run_all([["fails"], ["works"]], tmp_path) == 3
    assert (tmp_path / "done").exists()
