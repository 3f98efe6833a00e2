"""The words of a message: a notice in, Slack blocks and a text that is complete without them out.

Belongs here: wording, layout, limits of Slack, and that foreign text is inert. Not here: when something is told
(`decide.py`) and what a secret looks like (`redact.py`).

The order is fixed: redact, shorten, build. Foreign text stands in code marks only, with `&`, `<`, `>` escaped and
back-ticks replaced: no mention, link, emoji code or format in it works.
"""

import datetime as dt
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dags.alerts.records import Cause, Failure, Notice, NoticeKind, Policy
from dags.alerts.redact import redact
from dags.common.tags import ASSET_JOB

# Slack's limits, in UTF-16 units to be on the safe side. Text may have 4,000: ours leaves room for `with_line`.
HEADER_LIMIT = 150
SECTION_LIMIT = 3000
FIELD_LIMIT = 2000
FIELDS_LIMIT = 10
TEXT_LIMIT = 3400
STUB_LIMIT = 600
LINE_LIMIT = 250

ERROR_LIMIT = 2500
ERROR_LIMIT_IN_TEXT = 1500
NAME_LIMIT = 200
NAME_LIMIT_IN_LIST = 100
DETAIL_LIMIT = 2500
KEYS_SHOWN = 8
SAMPLES_SHOWN = 5
CAUSES_SHOWN = 3
LINES_SHOWN = 20

IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,100}")
BACK_TICK_LOOKALIKE = "\N{MODIFIER LETTER GRAVE ACCENT}"
PLAIN_LOOKALIKES = str.maketrans(
    {
        "<": "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}",
        ">": "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}",
        "`": BACK_TICK_LOOKALIKE,
    }
)

Block = dict[str, Any]


@dataclass(frozen=True)
class Message:
    """What is sent: `text` alone says everything; `stub` is one line, for when Slack refuses all else."""

    text: str
    blocks: Sequence[Block]
    stub: str


@dataclass(frozen=True)
class _Content:
    """A message before it is laid out. Subject and errors are redacted foreign text; all else is inert mrkdwn."""

    header: str
    subject: str
    sentences: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    errors: Sequence[tuple[str, str]] = ()
    lines: Sequence[str] = ()
    links: Sequence[tuple[str, str]] = ()


def compose(notice: Notice, policy: Policy, secrets: Collection[str] = ()) -> Message:
    """The message for a notice. `secrets` are values to be removed besides what looks like a secret."""
    build = _BUILDERS[notice.kind]
    content = build(_Foreign(secrets), notice, policy)
    return Message(text=_text(content), blocks=_blocks(content), stub=_stub(content))


def plain(notice: Notice) -> Message:
    """A message with the least that must be said, for a notice that could not be worded."""
    subject = code(redact(notice.job_name or notice.title or str(notice.backfill_id)))
    owner = code(redact(notice.owner)) if notice.owner else "nobody"
    line = f"🔴 {subject}: {notice.kind}. Owner: {owner}. The details could not be worded: see the runs."
    return Message(line, [], line)


def with_line(message: Message, line: str) -> Message:
    """The same message with a line above it, in mrkdwn of ours."""
    line = shorten(line, LINE_LIMIT)
    context: Block = {"type": "context", "elements": [{"type": "mrkdwn", "text": line}]}
    blocks = [context, *message.blocks] if message.blocks else []
    return Message(f"{line}\n{message.text}", blocks, f"{line} {message.stub}")


def code(text: str, limit: int = NAME_LIMIT) -> str:
    """A foreign name in code marks, inert, on one line."""
    line = " ".join(text.split()).replace("`", BACK_TICK_LOOKALIKE)
    return f"`{shorten(line, limit, escape) or '-'}`"


def escape(text: str) -> str:
    """Text in which Slack sees no mention, link or entity."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def shorten(text: str, limit: int, written: Callable[[str], str] = str) -> str:
    """The text as `written` writes it, in at most `limit` UTF-16 units: the head and the tail when it is too long.

    What is left out is counted in characters.
    """
    # Every character takes at least one unit, so the middle of a long text is never looked at.
    if len(text) <= limit and _units(whole := written(text)) <= limit:
        return whole
    mark = f"\n… {len(text):,} characters, the middle is left out …\n" if "\n" in text or limit > NAME_LIMIT else "…"
    room = limit - _units(mark)
    head = _fitting(text[:limit], (room + 1) // 2, written)
    tail = _fitting(text[-limit:][::-1], room // 2, written)[::-1]
    return written(head) + mark + written(tail)


def _fitting(text: str, room: int, written: Callable[[str], str]) -> str:
    for index, character in enumerate(text):
        room -= _units(written(character))
        if room < 0:
            return text[:index]
    return text


def _units(text: str) -> int:
    return len(text) + sum(character > "\uffff" for character in text)


@dataclass(frozen=True)
class _Foreign:
    """Makes what came from outside fit to be shown."""

    secrets: Collection[str] = field(repr=False)

    def name(self, text: str) -> str:
        return code(redact(text, self.secrets))

    def names(self, texts: Sequence[str]) -> str:
        shown = ", ".join(code(redact(text, self.secrets), NAME_LIMIT_IN_LIST) for text in texts[:KEYS_SHOWN])
        return shown + (f" and {len(texts) - KEYS_SHOWN} more" if len(texts) > KEYS_SHOWN else "")

    def plain(self, text: str) -> str:
        return " ".join(redact(text, self.secrets).split())

    def error(self, text: str) -> str:
        return redact(text, self.secrets).strip("\n").rstrip()

    def sentence(self, text: str) -> str:
        return self.name(text) if text else ""


def _incident(foreign: _Foreign, notice: Notice, policy: Policy) -> _Content:
    """A series that fails, fails on, or succeeds again: of one job, of assets, or of a backfill."""
    newest = notice.samples[0] if notice.samples else None
    # Of a backfill the runs are listed: one run's partition would read as if it were the whole.
    one = newest if notice.backfill_id is None or len(notice.samples) == 1 else None
    return _Content(
        header=_HEADERS[notice.kind],
        subject=foreign.plain(_subject(notice)),
        sentences=[sentence for sentence in (_story(notice), _reason(foreign, newest)) if sentence],
        facts=[
            (label, value)
            for label, value in (
                *_place(foreign, notice),
                ("Partition", foreign.sentence(one.partition or "") if one else ""),
                ("Failing step", foreign.names(newest.step_keys) if newest and newest.step_keys else ""),
                ("Attempt", str(one.attempt) if one and one.attempt > 1 else ""),
                ("Last success", _last_success(notice)),
                ("Run", foreign.name(one.run_id) if one else ""),
            )
            if value
        ],
        errors=list(_errors(foreign, notice, newest)),
        lines=[*_sample_lines(foreign, notice.samples, policy), *_more_lines(foreign, notice.lines)],
        links=list(_links(notice, newest, policy)),
    )


def _titled(foreign: _Foreign, notice: Notice, policy: Policy) -> _Content:
    """What has a title of its own: findings, storms, ends of mutes, tests."""
    only = notice.samples[0] if len(notice.samples) == 1 else None
    times = (
        ("Since", _time(notice.first_failed_at)),
        ("Over since", _time(notice.recovered_at)),
    )
    return _Content(
        header=_HEADERS[notice.kind],
        subject=foreign.plain(_subject(notice)),
        facts=[(label, value) for label, value in (*_place(foreign, notice), *times) if value],
        errors=[("", text)] if (text := foreign.error(notice.detail)) else [],
        lines=[*_sample_lines(foreign, notice.samples, policy, least=1), *_more_lines(foreign, notice.lines)],
        links=list(_links(notice, only, policy)),
    )


_HEADERS: Mapping[NoticeKind, str] = {
    NoticeKind.FAILING: "🔴 {subject} is failing",
    NoticeKind.MORE_FAILURES: "🔴 {subject} failed again",
    NoticeKind.STILL_FAILING: "🟠 {subject} is still failing",
    NoticeKind.RECOVERED: "🟢 {subject} has recovered",
    NoticeKind.FAILED_AND_RECOVERED: "🟢 {subject} failed and has recovered",
    NoticeKind.BACKFILL_FAILING: "🔴 {subject} is failing",
    NoticeKind.BACKFILL_ENDED: "🏁 {subject} has ended",
    NoticeKind.STORM: "🌩️ {subject}",
    NoticeKind.FINDING: "🟠 {subject}",
    NoticeKind.FINDING_OVER: "🟢 Over: {subject}",
    NoticeKind.MUTE_ENDED: "🔔 {subject}",
    NoticeKind.TEST: "🧪 {subject}",
}
_BUILDERS: Mapping[NoticeKind, Callable[[_Foreign, Notice, Policy], _Content]] = {
    NoticeKind.FAILING: _incident,
    NoticeKind.MORE_FAILURES: _incident,
    NoticeKind.STILL_FAILING: _incident,
    NoticeKind.RECOVERED: _incident,
    NoticeKind.FAILED_AND_RECOVERED: _incident,
    NoticeKind.BACKFILL_FAILING: _incident,
    NoticeKind.BACKFILL_ENDED: _incident,
    NoticeKind.STORM: _titled,
    NoticeKind.FINDING: _titled,
    NoticeKind.FINDING_OVER: _titled,
    NoticeKind.MUTE_ENDED: _titled,
    NoticeKind.TEST: _titled,
}
_OVER = (NoticeKind.RECOVERED, NoticeKind.FAILED_AND_RECOVERED, NoticeKind.BACKFILL_ENDED)


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
    return f"A run of {notice.location}" if notice.location else "A run"


def _story(notice: Notice) -> str:
    """What happened, since when and how often, in a sentence or two."""
    first, last, recovered = notice.first_failed_at, notice.last_failed_at, notice.recovered_at
    parts: list[str] = []
    if notice.kind is NoticeKind.BACKFILL_ENDED:
        parts.append(f"{_times(notice.failures, 'run')} of it failed.")
    elif notice.failures > 1:
        in_a_row = " in a row" if notice.streak == notice.failures and notice.backfill_id is None else ""
        parts.append(f"*{notice.failures:,} failures{in_a_row}*{_since(first, last)}.")
    elif first is not None:
        parts.append(f"Failed at *{_time(first)}*.")
    if notice.threshold > 1 and notice.kind is NoticeKind.FAILING:
        parts.append(f"It is told from {notice.threshold} failures in a row on.")
    if recovered is not None and notice.kind in _OVER:
        after = f", after {_duration(recovered - first)}" if first is not None and recovered > first else ""
        verb = "Ended" if notice.kind is NoticeKind.BACKFILL_ENDED else "Succeeded"
        parts.append(f"{verb} at *{_time(recovered)}*{after}.")
    return " ".join(parts)


def _since(first: dt.datetime | None, last: dt.datetime | None) -> str:
    if first is None:
        return ""
    return f" since {_time(first)}" + (f", the last at {_time(last)}" if last is not None and last > first else "")


def _reason(foreign: _Foreign, newest: Failure | None) -> str:
    return f"Counted as failed: {foreign.name(newest.reason)}" if newest is not None and newest.reason else ""


def _place(foreign: _Foreign, notice: Notice) -> Iterator[tuple[str, str]]:
    job = notice.job_name
    if job is not None:
        yield ("Job", "asset run" if job == ASSET_JOB else foreign.name(job))
    if notice.asset_keys:
        yield ("Assets" if len(notice.asset_keys) > 1 else "Asset", foreign.names(notice.asset_keys))
    yield ("Owner", foreign.name(notice.owner) if notice.owner else "nobody: give it one with `owned_by(…)`")
    yield ("Location", foreign.sentence(notice.location or ""))
    yield ("Backfill", foreign.sentence(notice.backfill_id or ""))


def _last_success(notice: Notice) -> str:
    if notice.kind in _OVER or notice.backfill_id is not None:
        return ""
    return _time(notice.last_success_at) or "none on record"


def _errors(foreign: _Foreign, notice: Notice, newest: Failure | None) -> Iterator[tuple[str, str]]:
    if notice.causes:
        total = sum(times for _, times in notice.causes)
        for cause, times in notice.causes[:CAUSES_SHOWN]:
            counted = f" · {_times(times, 'failure')}" if total > 1 else ""
            yield (f"*{foreign.name(cause.error_class)}*{counted}", foreign.error(cause.message))
    elif newest is not None and newest.cause is not None:
        yield _error(foreign, newest.cause)
    elif newest is not None and newest.reason is None and notice.kind not in _OVER:
        yield ("The run left no error: its process was probably killed. Its log may say more.", "")


def _error(foreign: _Foreign, cause: Cause) -> tuple[str, str]:
    return (f"*{foreign.name(cause.error_class)}*", foreign.error(cause.message))


def _sample_lines(foreign: _Foreign, samples: Sequence[Failure], policy: Policy, *, least: int = 2) -> Iterator[str]:
    """Runs of the incident, when there is more than the one that the message describes."""
    if len(samples) < least:
        return
    yield "Failed runs, the newest first:"
    for sample in samples[:SAMPLES_SHOWN]:
        partition = f" · {foreign.name(sample.partition)}" if sample.partition else ""
        url = _url(policy, "runs", sample.run_id)
        run = f"<{url}|run {sample.run_id[:8]}>" if url else f"run {foreign.name(sample.run_id)}"
        yield f"• {_time(sample.ended_at)} · {run}{partition}"


def _more_lines(foreign: _Foreign, lines: Sequence[str]) -> Iterator[str]:
    for line in lines[:LINES_SHOWN]:
        yield f"• {foreign.name(line)}"
    if len(lines) > LINES_SHOWN:
        yield f"• and {len(lines) - LINES_SHOWN} more"


def _links(notice: Notice, newest: Failure | None, policy: Policy) -> Iterator[tuple[str, str]]:
    run_url = _url(policy, "runs", newest.run_id) if newest is not None else None
    if run_url is not None:
        yield ("Open the run", run_url)
    backfill_id = notice.backfill_id or (newest.backfill_id if newest is not None else None)
    if backfill_id is not None and (url := _url(policy, "runs/b", backfill_id)) is not None:
        yield ("Open the backfill", url)


def _url(policy: Policy, path: str, identifier: str) -> str | None:
    """Where something is in the web interface. Dagster makes the identifiers: what looks otherwise gets no link."""
    if not policy.domain or not IDENTIFIER.fullmatch(identifier) or redact(identifier) != identifier:
        return None
    return f"https://{policy.domain}/{path}/{identifier}"


def _text(content: _Content) -> str:
    """Everything in one text. When it is too long, whole lines are left out, and of errors the middle."""
    begin = [
        f"*{_header(content, code)}*",
        *content.sentences,
        *(f"{label}: {value}" for label, value in content.facts),
    ]
    begin, room = _whole(begin, TEXT_LIMIT)
    end, room = _whole([f"<{url}|{label}>" for label, url in content.links], room)
    errors: list[str] = []
    for title, error in content.errors:
        block = _error_block(title, error, min(room - _units(title) - len("\n```\n\n```\n"), ERROR_LIMIT_IN_TEXT))
        kept, room = _whole([block], room)
        errors += kept
    lines, _ = _whole(content.lines, room)
    return "\n".join([*begin, *errors, *lines, *end])


def _whole(lines: Sequence[str], room: int) -> tuple[list[str], int]:
    """Those lines that fit into so many units, and the room that is left."""
    kept: list[str] = []
    for line in lines:
        if (needed := _units(line) + 1) <= room:
            kept.append(line)
            room -= needed
    return kept, room


def _header(content: _Content, written: Callable[[str], str]) -> str:
    return content.header.format(subject=written(content.subject))


def _blocks(content: _Content) -> list[Block]:
    header = shorten(_header(content, lambda subject: shorten(_plain(subject), HEADER_LIMIT - 40)), HEADER_LIMIT)
    blocks: list[Block] = [{"type": "header", "text": {"type": "plain_text", "text": header, "emoji": False}}]
    blocks += [_section(sentence) for sentence in content.sentences]
    if content.facts:
        fields = [_mrkdwn(shorten(f"*{label}*\n{value}", FIELD_LIMIT)) for label, value in content.facts]
        blocks.append({"type": "section", "fields": fields[:FIELDS_LIMIT]})
    blocks += [_section(_error_block(title, error, ERROR_LIMIT)) for title, error in content.errors]
    if content.lines:
        blocks += [_section(chunk) for chunk in _chunks(content.lines)]
    if content.links:
        buttons = [
            {"type": "button", "text": {"type": "plain_text", "text": label, "emoji": False}, "url": url}
            for label, url in content.links
        ]
        blocks.append({"type": "actions", "elements": buttons})
    return blocks


def _stub(content: _Content) -> str:
    owner = next((value for label, value in content.facts if label == "Owner"), "")
    links = "".join(f" {url}" for _, url in content.links[:1])
    stub = f"{_header(content, lambda subject: code(subject, NAME_LIMIT_IN_LIST))} ({owner})"
    return f"{stub}{links}" if _units(f"{stub}{links}") <= STUB_LIMIT else stub


def _chunks(lines: Sequence[str]) -> Iterator[str]:
    """The lines in as few pieces as fit a section each."""
    piece: list[str] = []
    for line in lines:
        if piece and _units("\n".join([*piece, line])) > SECTION_LIMIT:
            yield "\n".join(piece)
            piece = []
        piece.append(line)
    yield "\n".join(piece)


def _error_block(title: str, error: str, limit: int) -> str:
    if not error or limit <= 0:
        return title
    inert = shorten(error.replace("`", BACK_TICK_LOOKALIKE), limit, escape)
    return f"{title}\n```\n{inert}\n```" if title else f"```\n{inert}\n```"


def _plain(text: str) -> str:
    """For places that show text as it is: even there nothing that could be taken for a mention."""
    return text.translate(PLAIN_LOOKALIKES)


def _section(text: str) -> Block:
    return {"type": "section", "text": _mrkdwn(shorten(text, SECTION_LIMIT))}


def _mrkdwn(text: str) -> Block:
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _time(moment: dt.datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone(dt.UTC):%a} {moment.astimezone(dt.UTC):%-d %b %H:%M} UTC"


def _duration(length: dt.timedelta) -> str:
    minutes = round(length.total_seconds() / 60)
    days, hours = divmod(minutes // 60, 24)
    parts = [(days, "d"), (hours, "h"), (minutes % 60, "min")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "less than a minute"


def _times(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
