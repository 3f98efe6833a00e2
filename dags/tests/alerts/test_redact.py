import random

import pytest
from pydantic import SecretStr

from dags.alerts.redact import REDACTED, redact, secret_values
from dags.common.settings import Settings
from dags.tests.alerts.secret_samples import KINDS

SURROUNDINGS = ["{}", "failed: {} (1)", "a\n{}\nb", "{}{{}}", '{{"error": 1}} {}', "x" * 50 + " {} " + "y" * 50]


@pytest.mark.parametrize("kind", KINDS)
def test_no_secret_of_any_kind_is_left(kind: str) -> None:
    chance = random.Random(kind)  # noqa: S311 - repeatable
    for _ in range(60):
        secret, text = KINDS[kind](chance)
        around = chance.choice(SURROUNDINGS).format(text)
        clean = redact(around)
        assert secret not in clean, (around, clean)
        assert REDACTED in clean
        assert redact(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        "KeyError: 'token'",
        'password authentication failed for user "alerts"',
        "Code: 516. DB::Exception: default: Authentication failed: password is incorrect",
        "basic authentication failed",
        "Unexpected token } in JSON at position 4",
        "used 512 tokens: max_tokens=4096",
        "https://dagster.example.com/runs/0f3b6a1e?tab=logs",
        "mail to a@b.example about http://h/p?e=a@b.example",
        "s3://bucket/path/key.parquet not found",
        "partition global-2024-01-01-of-something failed, task-2024-01-01-retry too",
        "Table default.events does not exist. Maybe you meant default.events_2?",
        "commit 3ca41f9d8e6b5f0a1c2d3e4f5a6b7c8d9e0f1a2b",
        "{'rows': 12, 'author': 'kim', 'keyword': 'x'}",
        "Tokyo: 東京, emoji: 🔥",
        "",
    ],
)
def test_text_that_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_text_around_a_secret_stays() -> None:
    assert redact("connect(host='h', password='x y', port=1)") == f"connect(host='h', password={REDACTED}, port=1)"
    assert redact("postgresql://user:p@ss@db:5432/x failed") == f"postgresql://{REDACTED}@db:5432/x failed"
    assert redact("host=h password=abc port=1") == f"host=h password={REDACTED} port=1"
    assert redact('{"password": "a\\"b", "user": "x"}') == f'{{"password": {REDACTED}, "user": "x"}}'


def test_given_values_are_removed_however_they_are_written() -> None:
    secrets = {'pa"ss/wörd é', "plain-value"}
    for text in ('pa"ss/wörd é', "pa%22ss%2Fw%C3%B6rd%20%C3%A9", 'pa\\"ss/w\\u00f6rd \\u00e9', "plain-value"):
        assert redact(f"<{text}>", secrets) == f"<{REDACTED}>"


def test_a_value_that_is_part_of_another_does_not_save_its_rest() -> None:
    assert redact("abcd-and-more", {"abcd", "abcd-and-more"}) == REDACTED


def test_a_value_of_three_characters_is_too_common_to_be_removed() -> None:
    assert redact("the test", {"the", ""}) == "the test"


def test_control_characters_colours_and_hidden_characters_are_removed_before_the_search() -> None:
    assert redact("a\x00b\x1b[31mred\x1b[0m\r\n\tc\u202ed\ud800") == "abred\n\tcd"
    assert redact("gh\u200bp_\x1b[1m" + "a1" * 18) == REDACTED


def test_a_key_whose_end_was_cut_off_before_is_removed_to_the_end() -> None:
    assert redact("x -----BEGIN RSA PRIVATE KEY-----\nMIIE\nabcd") == f"x {REDACTED}"


def test_the_secrets_of_the_settings_are_those_that_are_set() -> None:
    settings = Settings(debug=True, postgres_password=SecretStr("hunter2hunter2"))
    assert secret_values(settings) == {"hunter2hunter2", "local-secret", "local-visitor-hash-key"}


@pytest.mark.parametrize(
    "text",
    [
        *[
            "a",
            " ",
            "password",
            "password='",
            "password: |\n a\n",
            "://",
            "://a:b/",
            '"\\',
            "<a",
            "--a",
            "sk-",
            "basic ",
        ],
        *["eyJaaaaa.", "s3('", "-----BEGIN A-----", "token\\", "xoxb-", "Aa0/"],
    ],
)
# Patterns that backtrack would take hours.
@pytest.mark.timeout(60)
def test_no_text_takes_long_to_redact(text: str) -> None:
    clean = redact(text * (200_000 // len(text)))
    assert redact(clean) == clean
