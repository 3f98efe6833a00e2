from dags.tests.web_preaggregated.events import DAY
from dags.web_preaggregated.statements import Window

WINDOW = Window(DAY, DAY)


def test_few_events_are_one_pass_without_a_condition_on_teams() -> None:
    assert WINDOW.passes([], 10) == [WINDOW]
    assert WINDOW.passes([(1, 4), (2, 6)], 10) == [WINDOW]


def test_more_events_are_passes_of_whole_teams_and_a_large_team_has_its_own() -> None:
    passes = WINDOW.passes([(1, 4), (2, 6), (3, 1), (5, 25), (6, 1), (7, 1)], 10)
    assert [one.team_ids for one in passes] == [(1, 2), (3,), (5,), (6, 7)]
    assert all((one.first, one.last) == (DAY, DAY) for one in passes)
