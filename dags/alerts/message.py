"""A message as Slack accepts it: blocks, a text that is complete without them, and a one-line stub.

What a message says is in `content.py`. Text is redacted there, then shortened here, then built into blocks. Text from
outside appears only in code marks, with `&`, `<`, `>` escaped and backticks replaced, so that no mention, link, emoji
code or formatting in it works.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

from dags.alerts.content import Content, Link, Name, Strong, Text, content_of
from dags.alerts.redact import redact
from dags.alerts.values import Block, Message, Notice, Policy

# Slack's limits, counted in UTF-16 code units to be safe. Slack accepts 4,000 in a text; `with_line` needs the rest.
MAX_HEADER_UNITS = 150
MAX_SECTION_UNITS = 3000
MAX_FIELD_UNITS = 2000
MAX_FIELDS = 10
MAX_TEXT_UNITS = 3400
MAX_STUB_UNITS = 600
MAX_LINE_UNITS = 250
# The words around the subject in a header.
MAX_SUBJECT_UNITS = MAX_HEADER_UNITS - 40

MAX_ERROR_UNITS = 2500
MAX_ERROR_IN_TEXT_UNITS = 1500
MAX_NAME_UNITS = 200
MAX_BRIEF_NAME_UNITS = 100

BACKTICK_LOOKALIKE = "\N{MODIFIER LETTER GRAVE ACCENT}"
_PLAIN_LOOKALIKES = str.maketrans(
    {
        "<": "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}",
        ">": "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}",
        "`": BACKTICK_LOOKALIKE,
    }
)


def compose(notice: Notice, policy: Policy, secrets: Collection[str] = ()) -> Message:
    """Return the message for a notice. `secrets` are removed in addition to what looks like a secret."""
    content = content_of(notice, policy, secrets)
    return Message(text=_text(content), blocks=_blocks(content), stub=_stub(content))


def plain(notice: Notice) -> Message:
    """Return a minimal message, for a notice that `compose` cannot format."""
    subject = code(redact(notice.job_name or notice.title or str(notice.backfill_id)))
    owner = code(redact(notice.owner)) if notice.owner else "none"
    line = f"🔴 {subject}: {notice.kind}. Owner: {owner}. The details could not be formatted; see the runs."
    return Message(line, [], line)


def with_line(message: Message, line: str) -> Message:
    """Return the message with a line of Slack markup above it."""
    line = shorten(line, MAX_LINE_UNITS)
    context: Block = {"type": "context", "elements": [{"type": "mrkdwn", "text": line}]}
    blocks = [context, *message.blocks] if message.blocks else []
    return Message(f"{line}\n{message.text}", blocks, f"{line} {message.stub}")


def code(text: str, max_units: int = MAX_NAME_UNITS) -> str:
    """Return text from outside in code marks, inert, on one line."""
    line = " ".join(text.split()).replace("`", BACKTICK_LOOKALIKE)
    return f"`{shorten(line, max_units, escape) or '-'}`"


def escape(text: str) -> str:
    """Escape the characters that Slack reads as a mention, link or entity."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def shorten(text: str, max_units: int, write: Callable[[str], str] = str) -> str:
    """Return `write(text)` in at most `max_units` UTF-16 code units, keeping head and tail of a text that is too long.

    The mark in the middle says how many characters the whole text has.
    """
    # Every character takes at least one unit, so the middle of a long text is never looked at.
    if len(text) <= max_units and _units(whole := write(text)) <= max_units:
        return whole
    is_long = "\n" in text or max_units > MAX_NAME_UNITS
    mark = f"\n… {len(text):,} characters, the middle is left out …\n" if is_long else "…"
    room = max_units - _units(mark)
    head = _fitting(text[:max_units], (room + 1) // 2, write)
    tail = _fitting(text[-max_units:][::-1], room // 2, write)[::-1]
    return write(head) + mark + write(tail)


def _fitting(text: str, room: int, write: Callable[[str], str]) -> str:
    for index, character in enumerate(text):
        room -= _units(write(character))
        if room < 0:
            return text[:index]
    return text


def _units(text: str) -> int:
    return len(text) + sum(character > "\uffff" for character in text)


def _mrkdwn(text: Text, max_name_units: int = MAX_NAME_UNITS) -> str:
    return "".join(_mrkdwn_part(part, max_name_units) for part in text)


def _mrkdwn_part(part: str | Name | Strong | Link, max_name_units: int) -> str:
    match part:
        case str():
            return part
        case Name():
            return code(part.text, MAX_BRIEF_NAME_UNITS if part.is_brief else max_name_units)
        case Strong():
            return f"*{_mrkdwn_part(part.part, max_name_units)}*"
        case Link():
            return f"<{part.url}|{part.label}>"


def _text(content: Content) -> str:
    """Return the content as one text. When it is too long, whole lines and the middle of errors are left out."""
    begin = [
        f"*{_mrkdwn(content.header)}*",
        *(_mrkdwn(sentence) for sentence in content.sentences),
        *(f"{label}: {_mrkdwn(value)}" for label, value in content.facts),
    ]
    begin, room = _fitting_lines(begin, MAX_TEXT_UNITS)
    end, room = _fitting_lines([_mrkdwn([link]) for link in content.links], room)
    errors: list[str] = []
    for excerpt in content.errors:
        title = _mrkdwn(excerpt.title)
        left = min(room - _units(title) - len("\n```\n\n```\n"), MAX_ERROR_IN_TEXT_UNITS)
        kept, room = _fitting_lines([_error_block(title, excerpt.error, left)], room)
        errors += kept
    lines, _ = _fitting_lines([_mrkdwn(line) for line in content.lines], room)
    return "\n".join([*begin, *errors, *lines, *end])


def _fitting_lines(lines: Sequence[str], room: int) -> tuple[list[str], int]:
    """Return the lines that fit into so many units, and the room that is left."""
    kept: list[str] = []
    for line in lines:
        if (needed := _units(line) + 1) <= room:
            kept.append(line)
            room -= needed
    return kept, room


def _blocks(content: Content) -> list[Block]:
    blocks: list[Block] = [{"type": "header", "text": _plain_text(_header(content))}]
    blocks += [_section(_mrkdwn(sentence)) for sentence in content.sentences]
    if content.facts:
        fields = [
            _mrkdwn_object(shorten(f"*{label}*\n{_mrkdwn(value)}", MAX_FIELD_UNITS)) for label, value in content.facts
        ]
        blocks.append({"type": "section", "fields": fields[:MAX_FIELDS]})
    blocks += [
        _section(_error_block(_mrkdwn(excerpt.title), excerpt.error, MAX_ERROR_UNITS)) for excerpt in content.errors
    ]
    if content.lines:
        blocks += [_section(chunk) for chunk in _chunks([_mrkdwn(line) for line in content.lines])]
    if content.links:
        buttons = [{"type": "button", "text": _plain_text(link.label), "url": link.url} for link in content.links]
        blocks.append({"type": "actions", "elements": buttons})
    return blocks


def _header(content: Content) -> str:
    """Return the header for a block of plain text, where code marks would be shown as they are."""
    parts = (
        # Even here, nothing may look like a mention.
        shorten(part.text.translate(_PLAIN_LOOKALIKES), MAX_SUBJECT_UNITS)
        if isinstance(part, Name)
        else _mrkdwn_part(part, MAX_NAME_UNITS)
        for part in content.header
    )
    return shorten("".join(parts), MAX_HEADER_UNITS)


def _stub(content: Content) -> str:
    stub = f"{_mrkdwn(content.header, MAX_BRIEF_NAME_UNITS)} ({_mrkdwn(content.owner)})"
    links = "".join(f" {link.url}" for link in content.links[:1])
    return f"{stub}{links}" if _units(f"{stub}{links}") <= MAX_STUB_UNITS else stub


def _chunks(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines in as few pieces as fit a section each."""
    piece: list[str] = []
    for line in lines:
        if piece and _units("\n".join([*piece, line])) > MAX_SECTION_UNITS:
            yield "\n".join(piece)
            piece = []
        piece.append(line)
    yield "\n".join(piece)


def _error_block(title: str, error: str, max_units: int) -> str:
    if not error or max_units <= 0:
        return title
    inert = shorten(error.replace("`", BACKTICK_LOOKALIKE), max_units, escape)
    return f"{title}\n```\n{inert}\n```" if title else f"```\n{inert}\n```"


def _section(text: str) -> Block:
    return {"type": "section", "text": _mrkdwn_object(shorten(text, MAX_SECTION_UNITS))}


def _mrkdwn_object(text: str) -> Block:
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _plain_text(text: str) -> Block:
    return {"type": "plain_text", "text": text, "emoji": False}
