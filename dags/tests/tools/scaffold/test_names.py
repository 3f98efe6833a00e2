import pytest

from tools.scaffold.names import RefusedError, channel_from, dag_from, team_from


@pytest.mark.parametrize("text", ["user-growth", "user_growth"])
def test_a_team_name_may_be_written_with_hyphens_or_underscores(text: str) -> None:
    team = team_from(text)
    assert (team.location, team.name, team.member) == ("user_growth", "team-user-growth", "TEAM_USER_GROWTH")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "give one, as in TEAM=growth"),
        ("Growth", "words of a-z and 0-9"),
        ("2growth", "begin with a letter"),
        ("growth-", "joined by '-' or '_'"),
        ("user--growth", "joined by '-' or '_'"),
        ("user growth", "words of a-z and 0-9"),
        ("größe", "words of a-z and 0-9"),
        ("../growth", "words of a-z and 0-9"),
        ('growth"; exit', "words of a-z and 0-9"),
        ("g" * 41, "40 at most"),
        ("class", "a word of Python"),
        ("match", "a word of Python"),
        ("list", "a word of Python"),
        ("json", "Python's own library"),
        ("team-growth", "leave out 'team-', as in TEAM=growth"),
        ("default", "means something else"),
    ],
)
def test_a_bad_team_name_is_refused_with_the_rule(text: str, rule: str) -> None:
    with pytest.raises(RefusedError) as caught:
        team_from(text)
    assert rule in str(caught.value)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "give one, as in NAME=signups"),
        ("sign ups", "words of a-z and 0-9"),
        ("signups_daily", "leave out '_daily', as in NAME=signups"),
        ("signups-job", "leave out '_job', as in NAME=signups"),
        ("test_signups", "pytest would collect it as a test"),
        ("email", "Python's own library"),
    ],
)
def test_a_bad_dag_name_is_refused_with_the_rule(text: str, rule: str) -> None:
    with pytest.raises(RefusedError) as caught:
        dag_from(text)
    assert rule in str(caught.value)


@pytest.mark.parametrize("text", ["#alerts-growth", "alerts-growth"])
def test_the_hash_of_a_channel_may_be_omitted(text: str) -> None:
    assert channel_from(text) == "#alerts-growth"


@pytest.mark.parametrize("text", ["", "#", "#Alerts", "#alerts growth", "#alerts.growth", "##alerts", "#" + "a" * 81])
def test_a_bad_channel_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(RefusedError, match="CHANNEL=#alerts-growth"):
        channel_from(text)
    assert channel_from("#" + "a" * 80)
