from pathlib import Path

import pytest

from tools.scaffold.edits import Entries, add_entry, add_to_location
from tools.scaffold.names import RefusedError
from tools.scaffold.project import CHANNELS, CODE_SERVERS, OWNERS, WORKSPACE, Plan

OWNERS_TEXT = '''class JobOwners(StrEnum):
    """The teams."""

    # Data.
    TEAM_B = "team-b"
    # Money,
    # and more of it.
    TEAM_D = "team-d"


OTHER = {"TEAM_C": 1}
'''
CHANNELS_TEXT = """notification_channel_per_team: Mapping[str, str] = {
    # Of the first.
    JobOwners.TEAM_B.value: "#b",
    JobOwners.TEAM_D.value: "#d",
}
"""
WORKSPACE_TEXT = """# Locations.
load_from:
  - python_module: { module_name: dags.locations.b, location_name: b }
  # - python_module: { module_name: dags.locations.d, location_name: d }  # much memory
"""
CODE_SERVERS_TEXT = """dagster-user-deployments:
  deployments:
    - <<: *code_server
      name: b
      # It needs more memory.
      resources:
        limits: { memory: 4Gi }
    # Of the second.
    - <<: *code_server
      name: d
runLauncher: {}
"""
LOCATION = '''"""Growth."""

from dags.locations import build_definitions, resources
from dags.rates import a_job

defs = build_definitions(
    owner=JobOwners.TEAM_GROWTH,
    assets=[
        # Made for a größe.
        *some_assets(),
        b,  # the last one
    ],
    jobs=[a_job],
    resources={**resources},
)
'''


@pytest.mark.parametrize(
    ("entries", "text", "name", "entry", "line_before"),
    [
        (OWNERS, OWNERS_TEXT, "TEAM_A", '    TEAM_A = "team-a"\n', "    # Data."),
        (OWNERS, OWNERS_TEXT, "TEAM_C", '    TEAM_C = "team-c"\n', '    TEAM_B = "team-b"'),
        (OWNERS, OWNERS_TEXT, "TEAM_E", '    TEAM_E = "team-e"\n', '    TEAM_D = "team-d"'),
        (CHANNELS, CHANNELS_TEXT, "TEAM_C", '    JobOwners.TEAM_C.value: "#c",\n', '    JobOwners.TEAM_B.value: "#b",'),
        (WORKSPACE, WORKSPACE_TEXT, "a", "  - python_module: { module_name: dags.locations.a, x }\n", "load_from:"),
        (
            WORKSPACE,
            WORKSPACE_TEXT,
            "e",
            "  - python_module: { module_name: dags.locations.e, x }\n",
            "  # - python_module: { module_name: dags.locations.d, location_name: d }  # much memory",
        ),
        (
            CODE_SERVERS,
            CODE_SERVERS_TEXT,
            "c",
            "    - <<: *code_server\n      name: c\n",
            "        limits: { memory: 4Gi }",
        ),
        (CODE_SERVERS, CODE_SERVERS_TEXT, "e", "    - <<: *code_server\n      name: e\n", "      name: d"),
    ],
)
def test_an_entry_is_added_in_its_sorted_place_and_comments_stay_with_theirs(
    entries: Entries, text: str, name: str, entry: str, line_before: str
) -> None:
    added = add_entry(text, entries, name, entry)
    assert f"{line_before}\n{entry}" in added
    assert added.replace(entry, "") == text
    assert add_entry(added, entries, name, entry) == added


def test_a_location_that_is_commented_out_counts_as_listed() -> None:
    assert add_entry(WORKSPACE_TEXT, WORKSPACE, "d", "another") == WORKSPACE_TEXT


@pytest.mark.parametrize(
    "text", ["", "class JobOwners(StrEnum):\n    pass\n", '    TEAM_B = "team-b"\nclass JobOwners:\n']
)
def test_a_text_without_the_heading_or_an_entry_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match=r"dags/common/owners.py has no 'class JobOwners' with entries"):
        add_entry(text, OWNERS, "TEAM_A", "")


def test_a_location_lists_new_definitions_behind_the_ones_it_has() -> None:
    added = add_to_location(
        LOCATION, "growth.py", "dags.signups", {"assets": "c", "asset_checks": "a_check", "jobs": "z_job"}
    )
    assert "from dags.signups import c, a_check, z_job\n" in added
    assert "        b,  # the last one\n        c,\n    ],\n" in added
    assert "    jobs=[a_job, z_job],\n" in added
    assert "    asset_checks=[a_check],\n" in added
    assert "        # Made for a größe.\n" in added


def test_a_location_on_one_line_gets_the_other_arguments(tmp_path: Path) -> None:
    plan = Plan(tmp_path)
    plan.put(
        "growth.py",
        "from dags.locations import build_definitions\n\ndefs = build_definitions(owner=G, sensors=[s], jobs=[],)\n",
    )
    added = add_to_location(plan.read("growth.py"), "growth.py", "dags.signups", {"assets": "a", "jobs": "j"})
    plan.put("growth.py", added)
    assert "build_definitions(\n    owner=G,\n    assets=[a],\n    sensors=[s],\n    jobs=[j],\n)" in plan.read(
        "growth.py"
    )


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("from dags.a import b\n", r"growth.py has no 'build_definitions\('"),
        ("from dags.a import b\ndefs = build_definitions(\n    jobs=b,\n)\n", "the argument jobs .* is not a list"),
    ],
)
def test_a_location_of_another_form_is_refused(source: str, problem: str) -> None:
    with pytest.raises(RefusedError, match=problem):
        add_to_location(source, "growth.py", "dags.a", {"jobs": "j"})
