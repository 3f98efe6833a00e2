import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from dags.alerts import message as messages
from dags.alerts.message import code, compose, escape, shorten, with_line
from dags.alerts.values import Cause, Failure, Message, Notice, NoticeKind, Policy
from dags.tests.alerts.fake_slack import check_message, units

NOW = dt.datetime(2025, 11, 21, 7, 22, tzinfo=dt.UTC)
POLICY = Policy({}, "#alerts", domain="dagster.example.com")
FAILURE = Failure(
    run_id="0f3b6a1e-1111-2222-3333-444455556666",
    ended_at=NOW,
    location="web_analytics",
    job_name="web_hourly_job",
    step_keys=["load_stats"],
    partition="2025-11-20",
    attempt=3,
    cause=Cause("clickhouse_driver.errors.ServerException", "Code: 60.\nTable default.events does not exist"),
)
FAILING = Notice(
    NoticeKind.FAILING,
    "team-web-analytics",
    location="web_analytics",
    job_name="web_hourly_job",
    asset_keys=["web/stats", "web/bounces"],
    failures=3,
    consecutive_failures=3,
    threshold=3,
    first_failed_at=NOW - dt.timedelta(hours=2),
    last_failed_at=NOW,
    last_success_at=NOW - dt.timedelta(days=1),
    samples=[FAILURE],
)


def texts(value: Any) -> list[str]:
    """Every text in the blocks."""
    if isinstance(value, dict):
        own = [value["text"]] if isinstance(value.get("text"), str) else []
        return own + [text for one in value.values() for text in texts(one)]
    return [text for one in value for text in texts(one)] if isinstance(value, list) else []


def buttons(message: Message) -> dict[str, str]:
    return {
        element["text"]["text"]: element["url"]
        for block in message.blocks
        if block["type"] == "actions"
        for element in block["elements"]
    }


def test_blocks_and_text_each_say_everything() -> None:
    message = compose(FAILING, POLICY)
    for whole in ("\n".join(texts(list(message.blocks))), message.text):
        for part in (
            "web_hourly_job",
            "is failing",
            "3 consecutive failures",
            "since Fri 21 Nov 05:22 UTC, most recently at Fri 21 Nov 07:22 UTC",
            "Alerting after 3 consecutive failures.",
            "`web/stats`, `web/bounces`",
            "team-web-analytics",
            "`web_analytics`",
            "`2025-11-20`",
            "`load_stats`",
            "Thu 20 Nov 07:22 UTC",
            "`clickhouse_driver.errors.ServerException`",
            "Code: 60.\nTable default.events does not exist",
            "0f3b6a1e-1111-2222-3333-444455556666",
        ):
            assert part in whole
    assert "*Attempt*\n3" in texts(list(message.blocks))
    assert "Attempt: 3" in message.text
    assert message.stub == (
        "🔴 `web_hourly_job` is failing (`team-web-analytics`) "
        "https://dagster.example.com/runs/0f3b6a1e-1111-2222-3333-444455556666"
    )


def test_there_is_a_button_to_the_run_and_one_to_the_backfill() -> None:
    assert buttons(compose(FAILING, POLICY)) == {
        "Open the run": "https://dagster.example.com/runs/0f3b6a1e-1111-2222-3333-444455556666"
    }
    backfill = replace(FAILING, kind=NoticeKind.BACKFILL_FAILING, backfill_id="qwertyui")
    message = compose(backfill, POLICY)
    assert buttons(message)["Open the backfill"] == "https://dagster.example.com/runs/b/qwertyui"
    assert "<https://dagster.example.com/runs/b/qwertyui|Open the backfill>" in message.text


def test_without_a_domain_there_are_no_links() -> None:
    message = compose(replace(FAILING, samples=[FAILURE, FAILURE]), Policy({}, "#alerts"))
    assert buttons(message) == {}
    assert "http" not in message.text + message.stub
    assert "run `0f3b6a1e-1111-2222-3333-444455556666`" in message.text


def test_a_storm_lists_its_runs_and_has_no_button_to_one_of_them() -> None:
    storm = Notice(NoticeKind.STORM, "team-a", title="27 jobs began to fail within 5 minutes", samples=[FAILURE] * 7)
    message = compose(storm, POLICY)
    assert "🌩️ `27 jobs began to fail within 5 minutes`" in message.text
    assert message.text.count("|run 0f3b6a1e>") == 5
    assert buttons(message) == {}


def test_a_backfill_is_reported_with_counts_causes_and_sample_runs() -> None:
    samples = [replace(FAILURE, run_id=f"{number}" * 8, partition=f"2025-11-0{number}") for number in range(1, 8)]
    causes = [
        (Cause("ValueError", "no rows"), 40),
        (Cause("KeyError", "a"), 9),
        (Cause("E", "b"), 1),
        (Cause("F", "c"), 1),
    ]
    notice = Notice(
        NoticeKind.BACKFILL_FAILING,
        "team-web-analytics",
        job_name="__ASSET_JOB",
        asset_keys=["web/stats"],
        backfill_id="qwertyui",
        failures=50,
        first_failed_at=NOW,
        last_failed_at=NOW,
        samples=samples,
        causes=causes,
    )
    text = compose(notice, POLICY).text
    assert "`Backfill qwertyui` is failing" in text
    assert "*50 failures* since" in text
    assert all(
        part in text for part in ("`ValueError`* · 40 failures", "`KeyError`* · 9 failures", "`E`* · 1 failure\n")
    )
    assert "`F`" not in text
    assert text.count("|run ") == 5
    assert "Job: asset run" in text
    assert "Partition:" not in text


def test_a_resolved_message_says_after_how_long() -> None:
    resolved = replace(FAILING, kind=NoticeKind.RESOLVED, resolved_at=NOW + dt.timedelta(minutes=31))
    message = compose(resolved, POLICY)
    assert "🟢 Resolved: `web_hourly_job`" in message.text
    assert "Succeeded at *Fri 21 Nov 07:53 UTC*, after 2 h 31 min." in message.text
    assert "Last success" not in message.text


def test_a_run_without_a_recorded_error_says_so() -> None:
    text = compose(replace(FAILING, samples=[replace(FAILURE, cause=None)]), POLICY).text
    assert "No error was recorded. The run's process was probably killed" in text


def test_a_failure_that_the_run_does_not_show_says_why_it_counts() -> None:
    failure = replace(FAILURE, cause=None, reason="A promised retry did not start within 10 minutes")
    assert (
        "Counted as failed: `A promised retry did not start"
        in compose(replace(FAILING, samples=[failure]), POLICY).text
    )


def test_a_failure_without_an_owner_says_how_to_assign_one() -> None:
    assert "Owner: none; assign one with `owned_by(…)`" in compose(replace(FAILING, owner=None), POLICY).text


@pytest.mark.parametrize("kind", NoticeKind)
def test_a_notice_of_any_kind_is_formatted_with_whatever_facts_it_has(kind: NoticeKind) -> None:
    full = replace(FAILING, kind=kind, title="A title", detail="A detail", lines=["one", "two"], resolved_at=NOW)
    for notice in (full, Notice(kind, None)):
        message = compose(notice, POLICY)
        check_message({"text": message.text, "blocks": list(message.blocks)})
        check_message({"text": message.stub})
    if kind in (
        NoticeKind.STORM,
        NoticeKind.FINDING,
        NoticeKind.FINDING_RESOLVED,
        NoticeKind.MUTE_ENDED,
        NoticeKind.TEST,
    ):
        assert all(part in compose(full, POLICY).text for part in ("A title", "A detail", "• `one`", "• `two`"))


def test_the_minimal_message_is_accepted_too() -> None:
    message = messages.plain(replace(FAILING, job_name="a<!channel>_job"))
    check_message({"text": message.text})
    assert "<!" not in message.text


def test_error_text_is_inert_in_text_and_in_blocks() -> None:
    evil = "<!channel> <@U1> ```rm``` :fire: https://evil.example <https://evil.example|x> & *b*"
    failure = replace(FAILURE, cause=Cause(evil, evil), partition=evil, step_keys=[evil])
    message = compose(replace(FAILING, job_name=evil, samples=[failure]), POLICY)
    for text in [message.text, message.stub, *texts(list(message.blocks))]:
        outside = "".join("".join(text.split("```")[::2]).split("`")[::2])
        assert "<!" not in text
        assert "<@" not in text
        assert "<https://evil" not in text
        if "is failing" not in text or text.startswith("*"):
            assert ":fire:" not in outside
            assert "evil.example" not in outside


def test_a_long_error_keeps_its_head_and_its_tail_and_says_what_is_missing() -> None:
    failure = replace(FAILURE, cause=Cause("ValueError", f"the head {'<é🔥>' * 50_000} the tail"))
    message = compose(replace(FAILING, samples=[failure]), POLICY)
    for text in (message.text, *texts(list(message.blocks))):
        if "the head" in text or "the tail" in text:
            assert "the head" in text
            assert "the tail" in text
            assert "200,018 characters, the middle is left out" in text
    check_message({"text": message.text, "blocks": list(message.blocks)})


def test_a_secret_across_the_cut_is_not_sent() -> None:
    limit = messages.MAX_ERROR_UNITS // 2
    for start in range(limit - 60, limit + 10, 7):
        failure = replace(FAILURE, cause=Cause("ValueError", "x" * start + " ghp_" + "a1B2" * 9 + " " + "y" * 9000))
        message = compose(replace(FAILING, samples=[failure]), POLICY)
        assert "a1B2a1B2" not in message.text + str(message.blocks)


def test_given_secrets_are_removed_from_names_too() -> None:
    message = compose(replace(FAILING, job_name="job_with_hunter2"), POLICY, {"hunter2"})
    assert "hunter2" not in message.text + message.stub + str(message.blocks)


def test_lines_above_leave_a_message_within_slacks_limits() -> None:
    crowded = replace(
        FAILING,
        lines=["z" * 500] * 60,
        asset_keys=["k" * 300] * 60,
        samples=[replace(FAILURE, cause=Cause("E" * 999, "<" * 9000), step_keys=["s" * 300] * 60)] * 9,
    )
    message = with_line(with_line(compose(crowded, POLICY), "a" * 900), "b" * 900)
    check_message({"text": message.text, "blocks": list(message.blocks)})
    check_message({"text": message.stub})
    assert message.text.startswith("bbb")
    assert message.blocks[0]["type"] == "context"


@pytest.mark.parametrize("limit", [20, 100, 1000])
@pytest.mark.parametrize("text", ["a" * 5000, "<" * 5000, "🔥" * 5000, "line\n" * 1000, "é<🔥" * 1000])
def test_a_shortened_text_fits(text: str, limit: int) -> None:
    assert units(shorten(text, limit, escape)) <= limit or limit < 60
    assert units(code(text, limit)) <= limit + 2 or limit < 60


def test_a_text_that_fits_is_not_shortened() -> None:
    assert shorten("a" * 100, 100) == "a" * 100
    assert code("two  words\nand `more`") == "`two words and ˋmoreˋ`"  # noqa: RUF001 - the look-alike is meant
