"""What a message says about a notice: redacted facts, without Slack's markup.

Slack's layout and limits live in `message.py`.
"""

import datetime as dt
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dags.alerts.redact import redact
from dags.alerts.values import Cause, Failure, Notice, NoticeKind, Policy
from dags.common.tags import ASSET_JOB

MAX_KEYS = 8
MAX_SAMPLES = 5
MAX_CAUSES = 3
MAX_LINES = 20

_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,100}")
_ENDED = (NoticeKind.RESOLVED, NoticeKind.FAILED_AND_RESOLVED, NoticeKind.BACKFILL_ENDED)


@dataclass(frozen=True)
class Name:
    """Redacted text that was not written in this package. Slack must not interpret anything in it."""

    text: str
    is_brief: bool = False


@dataclass(frozen=True)
class Strong:
    """An emphasized part of a text."""

    part: str | Name


@dataclass(frozen=True)
class Link:
    """A link to Dagster's web interface."""

    label: str
    url: str


# Plain strings are words of this package.
Text = Sequence[str | Name | Strong | Link]


@dataclass(frozen=True)
class ErrorExcerpt:
    """A redacted error with a title. The layout shortens it."""

    title: Text
    error: str = ""


@dataclass(frozen=True)
class Content:
    """Everything that one message says. The header names one subject."""

    header: Text
    owner: Text
    sentences: Sequence[Text] = ()
    facts: Sequence[tuple[str, Text]] = ()
    errors: Sequence[ErrorExcerpt] = ()
    lines: Sequence[Text] = ()
    links: Sequence[Link] = ()


def content_of(notice: Notice, policy: Policy, secrets: Collection[str] = ()) -> Content:
    """Return what the message for a notice says. `secrets` are removed in addition to what looks like a secret."""
    build = _incident if notice.kind in _INCIDENTS else _titled
    return build(_Redactor(secrets), notice, policy)


@dataclass(frozen=True)
class _Redactor:
    """Redaction of text from runs, errors and people."""

    secrets: Collection[str] = field(repr=False)

    def line(self, text: str) -> str:
        return " ".join(redact(text, self.secrets).split())

    def name(self, text: str) -> Text:
        return (Name(self.line(text)),)

    def optional_name(self, text: str | None) -> Text:
        return self.name(text) if text else ()

    def names(self, texts: Sequence[str]) -> Text:
        found: list[str | Name] = []
        for text in texts[:MAX_KEYS]:
            found += [", "] if found else []
            found.append(Name(self.line(text), is_brief=True))
        return (*found, *([f" and {len(texts) - MAX_KEYS} more"] if len(texts) > MAX_KEYS else ()))

    def error(self, text: str) -> str:
        return redact(text, self.secrets).strip("\n").rstrip()


def _incident(redactor: _Redactor, notice: Notice, policy: Policy) -> Content:
    """Describe a series or a backfill that fails, still fails, or is resolved."""
    newest = notice.samples[0] if notice.samples else None
    # For a backfill the runs are listed: the partition of one run would read as if it were the whole backfill.
    single = newest if notice.backfill_id is None or len(notice.samples) == 1 else None
    facts: Sequence[tuple[str, Text]] = (
        *_place(redactor, notice),
        ("Partition", redactor.optional_name(single.partition) if single else ()),
        ("Failing step", redactor.names(newest.step_keys) if newest else ()),
        ("Attempt", (str(single.attempt),) if single and single.attempt > 1 else ()),
        ("Last success", _last_success(notice)),
        ("Run", redactor.name(single.run_id) if single else ()),
    )
    return Content(
        header=_header(redactor, notice),
        owner=_owner(redactor, notice),
        sentences=[sentence for sentence in (_story(notice), _reason(redactor, newest)) if sentence],
        facts=[(label, value) for label, value in facts if value],
        errors=list(_errors(redactor, notice, newest)),
        lines=[*_sample_lines(redactor, notice.samples, policy), *_more_lines(redactor, notice.lines)],
        links=list(_links(notice, newest, policy)),
    )


def _titled(redactor: _Redactor, notice: Notice, policy: Policy) -> Content:
    """Describe a notice that has a title of its own: a finding, a storm, the end of a mute, a test."""
    single = notice.samples[0] if len(notice.samples) == 1 else None
    facts: Sequence[tuple[str, Text]] = (
        *_place(redactor, notice),
        ("Since", _time(notice.first_failed_at)),
        ("Resolved at", _time(notice.resolved_at)),
    )
    detail = redactor.error(notice.detail)
    return Content(
        header=_header(redactor, notice),
        owner=_owner(redactor, notice),
        facts=[(label, value) for label, value in facts if value],
        errors=[ErrorExcerpt((), detail)] if detail else [],
        lines=[*_sample_lines(redactor, notice.samples, policy, min_samples=1), *_more_lines(redactor, notice.lines)],
        links=list(_links(notice, single, policy)),
    )


# What stands before the subject and after it.
_HEADERS: Mapping[NoticeKind, tuple[str, str]] = {
    NoticeKind.FAILING: ("🔴 ", " is failing"),
    NoticeKind.MORE_FAILURES: ("🔴 ", " failed again"),
    NoticeKind.STILL_FAILING: ("🟠 ", " is still failing"),
    NoticeKind.RESOLVED: ("🟢 Resolved: ", ""),
    NoticeKind.FAILED_AND_RESOLVED: ("🟢 Resolved: ", " failed and then succeeded"),
    NoticeKind.BACKFILL_FAILING: ("🔴 ", " is failing"),
    NoticeKind.BACKFILL_ENDED: ("🏁 ", " has ended"),
    NoticeKind.STORM: ("🌩️ ", ""),
    NoticeKind.FINDING: ("🟠 ", ""),
    NoticeKind.FINDING_RESOLVED: ("🟢 Resolved: ", ""),
    NoticeKind.MUTE_ENDED: ("🔔 ", ""),
    NoticeKind.TEST: ("🧪 ", ""),
}
_INCIDENTS = (
    NoticeKind.FAILING,
    NoticeKind.MORE_FAILURES,
    NoticeKind.STILL_FAILING,
    NoticeKind.RESOLVED,
    NoticeKind.FAILED_AND_RESOLVED,
    NoticeKind.BACKFILL_FAILING,
    NoticeKind.BACKFILL_ENDED,
)


def _header(redactor: _Redactor, notice: Notice) -> Text:
    before, after = _HEADERS[notice.kind]
    return (before, Name(redactor.line(_subject(notice))), after)


def _subject(notice: Notice) -> str:
    if notice.title:
        return notice.title
    if notice.backfill_id is not None:
        return f"Backfill {notice.backfill_id}"
    if notice.job_name not in (None, ASSET_JOB):
        return str(notice.job_name)
    if len(notice.asset_keys) == 1:
        return f"Asset {notice.asset_keys[0]}"
    if notice.asset_keys:
        return f"{len(notice.asset_keys)} assets ({notice.asset_keys[0]}, …)"
    return f"A run in {notice.location}" if notice.location else "A run"


def _story(notice: Notice) -> Text:
    """Say what happened, since when and how often."""
    first, last, resolved = notice.first_failed_at, notice.last_failed_at, notice.resolved_at
    sentences: list[Text] = []
    if notice.kind is NoticeKind.BACKFILL_ENDED:
        sentences.append((f"{_times(notice.failures, 'run')} failed.",))
    elif notice.failures > 1:
        consecutive = (
            "consecutive " if notice.consecutive_failures == notice.failures and notice.backfill_id is None else ""
        )
        sentences.append((Strong(f"{notice.failures:,} {consecutive}failures"), *_since(first, last), "."))
    elif first is not None:
        sentences.append(("Failed at ", Strong(format_time(first)), "."))
    if notice.threshold > 1 and notice.kind is NoticeKind.FAILING:
        sentences.append((f"Alerting after {notice.threshold} consecutive failures.",))
    if resolved is not None and notice.kind in _ENDED:
        after = f", after {_duration(resolved - first)}" if first is not None and resolved > first else ""
        verb = "Ended" if notice.kind is NoticeKind.BACKFILL_ENDED else "Succeeded"
        sentences.append((f"{verb} at ", Strong(format_time(resolved)), f"{after}."))
    return [part for number, sentence in enumerate(sentences) for part in (*((" ",) if number else ()), *sentence)]


def _since(first: dt.datetime | None, last: dt.datetime | None) -> Text:
    if first is None:
        return ()
    latest = f", most recently at {format_time(last)}" if last is not None and last > first else ""
    return (f" since {format_time(first)}{latest}",)


def _reason(redactor: _Redactor, newest: Failure | None) -> Text:
    return ("Counted as failed: ", *redactor.name(newest.reason)) if newest is not None and newest.reason else ()


def _place(redactor: _Redactor, notice: Notice) -> Iterator[tuple[str, Text]]:
    job = notice.job_name
    if job is not None:
        yield ("Job", ("asset run",) if job == ASSET_JOB else redactor.name(job))
    yield ("Assets" if len(notice.asset_keys) > 1 else "Asset", redactor.names(notice.asset_keys))
    yield ("Owner", _owner(redactor, notice))
    yield ("Location", redactor.optional_name(notice.location))
    yield ("Backfill", redactor.optional_name(notice.backfill_id))


def _owner(redactor: _Redactor, notice: Notice) -> Text:
    return redactor.name(notice.owner) if notice.owner else ("none; assign one with ", Name("owned_by(…)"))


def _last_success(notice: Notice) -> Text:
    if notice.kind in _ENDED or notice.backfill_id is not None:
        return ()
    return _time(notice.last_success_at) or ("none on record",)


def _errors(redactor: _Redactor, notice: Notice, newest: Failure | None) -> Iterator[ErrorExcerpt]:
    if notice.causes:
        total = sum(count for _, count in notice.causes)
        for cause, count in notice.causes[:MAX_CAUSES]:
            yield _error(redactor, cause, f" · {_times(count, 'failure')}" if total > 1 else "")
    elif newest is not None and newest.cause is not None:
        yield _error(redactor, newest.cause)
    elif newest is not None and newest.reason is None and notice.kind not in _ENDED:
        yield ErrorExcerpt(("No error was recorded. The run's process was probably killed; see the log of the run.",))


def _error(redactor: _Redactor, cause: Cause, counted: str = "") -> ErrorExcerpt:
    return ErrorExcerpt((Strong(Name(redactor.line(cause.error_class))), counted), redactor.error(cause.message))


def _sample_lines(
    redactor: _Redactor, samples: Sequence[Failure], policy: Policy, *, min_samples: int = 2
) -> Iterator[Text]:
    """List runs of the incident when there are more than the one that the message describes."""
    if len(samples) < min_samples:
        return
    yield ("Failed runs, newest first:",)
    for sample in samples[:MAX_SAMPLES]:
        partition = (" · ", *redactor.name(sample.partition)) if sample.partition else ()
        url = _url(policy, "runs", sample.run_id)
        run: Text = (Link(f"run {sample.run_id[:8]}", url),) if url else ("run ", *redactor.name(sample.run_id))
        yield (f"• {format_time(sample.ended_at)} · ", *run, *partition)


def _more_lines(redactor: _Redactor, lines: Sequence[str]) -> Iterator[Text]:
    for line in lines[:MAX_LINES]:
        yield ("• ", *redactor.name(line))
    if len(lines) > MAX_LINES:
        yield (f"• and {len(lines) - MAX_LINES} more",)


def _links(notice: Notice, newest: Failure | None, policy: Policy) -> Iterator[Link]:
    run_url = _url(policy, "runs", newest.run_id) if newest is not None else None
    if run_url is not None:
        yield Link("Open the run", run_url)
    backfill_id = notice.backfill_id or (newest.backfill_id if newest is not None else None)
    if backfill_id is not None and (url := _url(policy, "runs/b", backfill_id)) is not None:
        yield Link("Open the backfill", url)


def _url(policy: Policy, path: str, identifier: str) -> str | None:
    """Return the address of a run or backfill. An identifier that does not look like Dagster's gets no link."""
    if not policy.domain or not _IDENTIFIER.fullmatch(identifier) or redact(identifier) != identifier:
        return None
    return f"https://{policy.domain}/{path}/{identifier}"


def format_time(time: dt.datetime) -> str:
    """Return a time as messages show it."""
    utc = time.astimezone(dt.UTC)
    return f"{utc:%a} {utc:%-d %b %H:%M} UTC"


def _time(time: dt.datetime | None) -> Text:
    return () if time is None else (format_time(time),)


def _duration(length: dt.timedelta) -> str:
    minutes = round(length.total_seconds() / 60)
    days, hours = divmod(minutes // 60, 24)
    parts = [(days, "d"), (hours, "h"), (minutes % 60, "min")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "less than a minute"


def _times(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
