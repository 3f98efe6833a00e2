import pytest

from tools.scaffold import edits
from tools.scaffold.edits import EditError

ENUM = '''class Owners(StrEnum):
    """The teams."""

    # Data.
    B = "b"
    # Money.
    D = "d"
'''
DICT = """channels: Mapping[str, str] = {
    # Of the first.
    Owners.B.value: "#b",
    # Of the
    # second.
    Owners.D.value: "#d",
}
"""
LOCATION = '''"""Growth."""

from dags.locations import build_definitions, resources
from dags.rates import a_job

defs = build_definitions(
    assets=[
        # Made for a größe.
        *some_assets(),
        b,
    ],
    jobs=[a_job],
    resources={**resources},
)
'''
TOML = """[[tool.importlinter.contracts]]
layers = [
    "tests",
    # Dags.
    "events | rates",
]
"""
WORKSPACE = """# Locations.
load_from:
  - python_module: { module_name: dags.locations.b, location_name: b }
  # - python_module: { module_name: dags.locations.d, location_name: d }  # much memory
"""


@pytest.mark.parametrize(("name", "line_before"), [("A", "# Data."), ("C", 'B = "b"'), ("E", 'D = "d"')])
def test_a_member_goes_to_its_place_and_comments_stay_with_theirs(name: str, line_before: str) -> None:
    added = edits.add_enum_member(ENUM, "Owners", name, name.lower())
    assert f"    {line_before}\n    {name} =" in added
    assert edits.enum_members(added, "Owners") == {"B": "b", "D": "d", name: name.lower()}
    assert edits.add_enum_member(added, "Owners", name, name.lower()) == added


def test_an_entry_goes_to_its_place_and_comments_stay_with_theirs() -> None:
    added = edits.add_dict_entry(DICT, "channels", "Owners.C.value", '"#c"')
    assert '"#b",\n    Owners.C.value: "#c",\n    # Of the\n    # second.\n    Owners.D' in added
    assert list(edits.dict_entries(added, "channels")) == ["Owners.B.value", "Owners.C.value", "Owners.D.value"]
    assert edits.add_dict_entry(added, "channels", "Owners.C.value", "'#c'") == added


def test_another_value_is_not_overwritten() -> None:
    with pytest.raises(EditError, match=r"Owners\.B\.value: '#b', and not '#c': mend it there"):
        edits.add_dict_entry(DICT, "channels", "Owners.B.value", '"#c"')
    with pytest.raises(EditError, match=r"Owners\.B is 'b' and not 'c'"):
        edits.add_enum_member(ENUM, "Owners", "B", "c")


def test_a_location_lists_what_is_new_among_what_it_has() -> None:
    added = edits.add_to_location(
        LOCATION, "dags.signups", {"assets": "c", "asset_checks": "a_check", "jobs": "Z_job", "schedules": "a_schedule"}
    )
    assert "from dags.signups import Z_job, a_check, a_schedule, c\n" in added
    assert "        b, c,\n" in added
    assert "jobs=[Z_job, a_job]" in added
    assert "asset_checks=[a_check], jobs=" in added
    assert "schedules=[a_schedule], resources=" in added
    assert "# Made for a größe." in added
    assert edits.add_to_location(added, "dags.signups", {"assets": "c"}) == added


def test_a_location_that_registers_sensors_alone_gets_the_other_lists() -> None:
    source = "from dags.locations import build_definitions\ndefs = build_definitions(sensors=[s])\n"
    added = edits.add_to_location(source, "dags.signups", {"assets": "a", "jobs": "j"})
    assert "build_definitions(assets=[a], jobs=[j], sensors=[s])" in added


def test_a_module_goes_to_the_layer_of_dags() -> None:
    added = edits.add_layer_member(TOML, "orders")
    assert '    # Dags.\n    "events | orders | rates",' in added
    assert edits.add_layer_member(added, "orders") == added


@pytest.mark.parametrize(
    ("location", "line_before"),
    [
        ("a", "load_from:"),
        ("c", "  - python_module: { module_name: dags.locations.b, location_name: b }"),
        ("e", "  # - python_module: { module_name: dags.locations.d, location_name: d }  # much memory"),
    ],
)
def test_a_location_goes_to_its_place_in_the_workspace(location: str, line_before: str) -> None:
    added = edits.add_workspace_entry(WORKSPACE, location)
    entry = f"  - python_module: {{ module_name: dags.locations.{location}, location_name: {location} }}"
    assert f"{line_before}\n{entry}\n" in added
    assert edits.add_workspace_entry(added, location) == added


def test_a_location_that_is_left_out_by_a_comment_is_listed() -> None:
    assert edits.add_workspace_entry(WORKSPACE, "d") == WORKSPACE


@pytest.mark.parametrize(
    ("source", "problem"), [("x = 1\n", "no class Owners"), ("class Owners:\n    pass\n", "no members")]
)
def test_an_enum_that_is_not_there_is_named(source: str, problem: str) -> None:
    with pytest.raises(EditError, match=problem):
        edits.add_enum_member(source, "Owners", "A", "a")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("x = 1\n", "no dict channels"),
        ("channels: M = {'a': 'b'}\n", "an entry on each line"),
        ("channels: M = f()\n", "is no dict"),
    ],
)
def test_a_dict_that_is_not_there_is_named(source: str, problem: str) -> None:
    with pytest.raises(EditError, match=problem):
        edits.add_dict_entry(source, "channels", "'c'", "'d'")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import a\n", "no import"),
        ("from a import b\n", "build_definitions 0 times"),
        ("from a import b\nbuild_definitions(jobs=b)\n", "jobs of build_definitions is no list"),
    ],
)
def test_a_location_of_another_form_is_refused(source: str, problem: str) -> None:
    with pytest.raises(EditError, match=problem):
        edits.add_to_location(source, "dags.a", {"jobs": "j"})


def test_a_layer_or_a_workspace_without_an_entry_is_refused() -> None:
    with pytest.raises(EditError, match="no one layer of dags"):
        edits.add_layer_member("", "a")
    with pytest.raises(EditError, match="no entries"):
        edits.add_workspace_entry("load_from: []\n", "a")
