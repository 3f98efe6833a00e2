"""Odd errors through the message builder and over HTTP into the fake Slack."""

import datetime as dt
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from dags.alerts import message as messages
from dags.alerts.slack import SlackOutcome, post
from dags.alerts.values import Cause, Failure, Notice, NoticeKind, Policy
from dags.common.slack import make_client
from dags.tests.alerts.fake_slack import (
    TOKEN,
    FakeSlack,
    Stored,
    check_message,
    live_markup,
    mrkdwn_of,
    plain_of,
    serving,
)
from dags.tests.alerts.secret_samples import KINDS, drawn

CHANNEL = "#alerts"
POLICY = Policy({"team-a": CHANNEL}, CHANNEL, domain="dagster.example.com")
NOW = dt.datetime(2025, 11, 21, 7, 0, tzinfo=dt.UTC)
LONG = 200_000
ODDITIES = [
    *["<!channel>", "<!here>", "<!everyone>", "<@U012AB3CD>", "<#C012AB3CD|general>", "<!subteam^S012|x>", "@here"],
    *[
        "<https://evil.example|click>",
        "https://evil.example/",
        "&lt;!channel&gt;",
        "&amp;",
        "<",
        ">",
        "&",
        "<<!channel>>",
    ],
    *["`", "``", "```", "\n```\n", "*bold*", "_it_", "~no~", ":fire:", ":tada::tada:", "> quote", "• x", "|", "\\"],
    *[
        "🔥",
        "👩‍👩‍👧‍👦",
        "🇩🇪",
        "e\u0301" * 5,
        "\u202eright to left",
        "\u200b",
        "\x00",
        "\x1b[31m",
        "\ud83d",
        "\r\n",
        "\t",
        "\n" * 9,
    ],
    *["東京", "Ω" * 30, "a" * 300, " " * 50, "%s %d {} {0} {x}", "null", "', '", '"', "{", "}}", "0", "-", ""],
    *["Traceback (most recent call last):\n", '  File "/app/dags/x.py", line 3, in f\n', "DB::Exception: Code: 60. "],
]
KINDS_WITH_RUNS = [NoticeKind.FAILING, NoticeKind.MORE_FAILURES, NoticeKind.STILL_FAILING, NoticeKind.RESOLVED]


@dataclass
class Odd:
    """A notice full of oddities, and the secrets in it."""

    notice: Notice
    secrets: list[str]
    known: list[str]


def filler(chance: random.Random, length: int) -> str:
    pieces: list[str] = []
    while length > 0:
        piece = chance.choice(ODDITIES) if chance.random() < 0.5 else "word " * chance.randrange(1, 8)
        pieces.append(piece)
        length -= len(piece) or 1
    return "".join(pieces)


def text_of(chance: random.Random, odd: Odd, length: int) -> str:
    """Return oddities with up to two secrets, often where a long text is cut."""
    text = filler(chance, length)
    pieces: list[tuple[int, str]] = []
    for _ in range(chance.randrange(3)):
        kind = chance.choice([*KINDS, "known"])
        if kind == "known":
            secret = planted = drawn(chance, 12)
            odd.known.append(secret)
        else:
            secret, planted = KINDS[kind](chance)
        odd.secrets.append(secret)
        limits = (messages.MAX_ERROR_UNITS, messages.MAX_ERROR_IN_TEXT_UNITS, messages.MAX_NAME_UNITS)
        cuts = [cut for limit in limits for cut in (limit // 2, len(text) - limit // 2)]
        at = chance.choice(cuts) - chance.randrange(len(planted) + 1) if chance.random() < 0.7 else 0
        pieces.append((min(max(at, 0), len(text)), planted))
    # From the end on: no secret is planted into another.
    for at, planted in sorted(pieces, reverse=True):
        text = f"{text[:at]}\n{planted}\n{text[at:]}"
    return text


def odd_one(seed: int) -> Odd:
    chance = random.Random(seed)  # noqa: S311 - repeatable
    odd = Odd(Notice(NoticeKind.TEST, None), [], [])

    def name() -> str:
        return text_of(chance, odd, chance.choice([5, 20, 20, 400])) if chance.random() < 0.3 else "plain_name"

    def cause() -> Cause:
        length = LONG if chance.random() < 0.01 else chance.choice([0, 10, 300, 1500, 3000, 3000, 8000])
        return Cause(name(), text_of(chance, odd, length))

    def failure() -> Failure:
        return Failure(
            run_id=f"{chance.getrandbits(128):032x}",
            ended_at=NOW,
            location=name(),
            job_name=name(),
            step_keys=[name() for _ in range(chance.randrange(12))],
            partition=name() if chance.random() < 0.5 else None,
            attempt=chance.randrange(1, 4),
            cause=cause() if chance.random() < 0.9 else None,
            reason=name() if chance.random() < 0.1 else None,
        )

    odd.notice = Notice(
        kind=chance.choice([*NoticeKind, *KINDS_WITH_RUNS]),
        owner=chance.choice(["team-a", None, name()]),
        location=name(),
        job_name=chance.choice([name(), "__ASSET_JOB", None]),
        asset_keys=[name() for _ in range(chance.choice([0, 1, 2, 40]))],
        backfill_id=chance.choice([None, None, "qwertyui", name()]),
        failures=chance.randrange(6000),
        consecutive_failures=chance.randrange(6),
        threshold=chance.randrange(1, 4),
        first_failed_at=NOW,
        last_failed_at=NOW,
        samples=[failure() for _ in range(chance.randrange(7))],
        causes=[(cause(), chance.randrange(1, 99)) for _ in range(chance.choice([0, 0, 1, 5]))],
        title=name() if chance.random() < 0.3 else "",
        detail=cause().message if chance.random() < 0.3 else "",
        lines=[name() for _ in range(chance.choice([0, 2, 60]))],
    )
    return odd


def send(slack: FakeSlack, seed: int) -> None:
    """Send one odd message, and check each of its forms."""
    odd = odd_one(seed)
    message = messages.compose(odd.notice, POLICY, odd.known)
    message = messages.with_line(messages.with_line(message, "↪️ Rerouted from `#x`."), "♻️ Possibly repeated.")
    answer = post(make_client(TOKEN, slack.base_url), CHANNEL, message.text, message.blocks, str(seed))
    assert answer.outcome is SlackOutcome.SENT, (seed, answer)
    [stored] = slack.copies(str(seed))
    check_message({"text": message.text})
    check_message({"text": message.stub})
    check_stored(stored, odd, seed)
    check_stored(Stored(CHANNEL, "", message.stub, [], None, {}, is_broadcast=False, posted_at=0), odd, seed)
    with slack.lock:
        slack.messages.remove(stored)


def check_stored(stored: Stored, odd: Odd, seed: int) -> None:
    """Check that no secret is in a message, and that nothing but the router's own links is interpreted."""
    everything = stored.everything()
    for secret in odd.secrets:
        assert secret not in everything, seed
        # Nor a usable part of it.
        assert secret[-10:] not in everything, seed
    for mrkdwn in mrkdwn_of(stored):
        links = [urlsplit(markup.split("|")[0]) for markup in live_markup(mrkdwn)]
        assert {(link.scheme, link.netloc) for link in links} <= {("https", POLICY.domain)}, seed
        check_code_marks(mrkdwn, seed)
    for plain in plain_of(stored):
        assert not live_markup(plain), seed


def check_code_marks(mrkdwn: str, seed: int) -> None:
    """Check that text from outside is in code marks, where no formatting, emoji code or address works."""
    outside = "".join(mrkdwn.split("```")[::2])
    assert mrkdwn.count("```") % 2 == 0, seed
    assert outside.count("`") % 2 == 0, seed
    outside = "".join(outside.split("`")[::2])
    for oddity in (":fire:", "evil.example", "@here", "~no~", "&lt;!"):
        assert oddity not in outside, (seed, outside)


def send_all(seeds: range) -> None:
    with serving(CHANNEL) as slack, ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda seed: send(slack, seed), seeds):
            pass
        assert slack.refusals == []
        assert len(slack.calls) == len(seeds)


def test_odd_errors_are_accepted_without_a_secret_and_without_a_live_mention() -> None:
    send_all(range(400))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_odd_errors_are_accepted_without_a_secret_and_without_a_live_mention() -> None:
    send_all(range(10_000))
