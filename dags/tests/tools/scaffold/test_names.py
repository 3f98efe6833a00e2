import pytest

from tools.scaffold.names import NameRefusedError, channel_from, dag_from, team_from


@pytest.mark.parametrize("text", ["user-growth", "user_growth"])
def test_a_team_has_a_name_of_each_kind_however_it_is_written(text: str) -> None:
    team = team_from(text)
    assert (team.location, team.name, team.member) == ("user_growth", "team-user-growth", "TEAM_USER_GROWTH")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "give one, as in TEAM=growth"),
        ("Growth", "lower-case letters and digits"),
        ("2growth", "begin with a letter"),
        ("growth-", "joined by '-' or '_'"),
        ("user--growth", "joined by '-' or '_'"),
        ("user growth", "lower-case letters"),
        ("größe", "lower-case letters"),
        ("../growth", "lower-case letters"),
        ('growth"; exit', "lower-case letters"),
        ("g" * 41, "40 at the most"),
        ("class", "a word of Python"),
        ("match", "a word of Python"),
        ("list", "a word of Python"),
        ("json", "Python's own library"),
        ("team-growth", "leave out 'team-', as in TEAM=growth"),
        ("default", "means something else"),
    ],
)
def test_a_bad_name_of_a_team_is_refused_with_the_rule(text: str, rule: str) -> None:
    with pytest.raises(NameRefusedError) as caught:
        team_from(text)
    assert rule in str(caught.value)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "give one, as in NAME=signups"),
        ("sign ups", "lower-case letters"),
        ("signups_daily", "leave out '_daily', as in NAME=signups"),
        ("signups-job", "leave out '_job', as in NAME=signups"),
        ("test_signups", "would be taken for a test"),
        ("email", "Python's own library"),
    ],
)
def test_a_bad_name_of_a_dag_is_refused_with_the_rule(text: str, rule: str) -> None:
    with pytest.raises(NameRefusedError) as caught:
        dag_from(text)
    assert rule in str(caught.value)


@pytest.mark.parametrize("text", ["#alerts-growth", "alerts-growth"])
def test_a_channel_may_be_given_without_its_sign(text: str) -> None:
    assert channel_from(text) == "#alerts-growth"


@pytest.mark.parametrize("text", ["", "#", "#Alerts", "#alerts growth", "#alerts.growth", "##alerts", "#" + "a" * 81])
def test_a_bad_channel_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(NameRefusedError, match="CHANNEL=#alerts-growth"):
        channel_from(text)
    assert channel_from("#" + "a" * 80)
