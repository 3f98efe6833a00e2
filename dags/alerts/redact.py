"""Removal of secrets and control characters from text of runs and errors, before it is stored or sent.

Text is redacted before it is shortened, because a secret that was cut in two can no longer be recognized.
"""

import json
import re
from collections.abc import Collection, Iterator
from urllib.parse import quote

from pydantic import SecretStr

from dags.common.settings import Settings

REDACTED = "[redacted]"
# Shorter values would match parts of ordinary words.
MIN_SECRET_CHARACTERS = 4

# Terminal colors and cursor movements; other control characters except tab and line feed; characters that change the
# direction of text; halves of surrogate pairs; invisible characters, which could hide a token from the patterns below.
_UNFIT = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)

_KEY = (
    r"(?:passw(?:or)?d|passphrase|\bpwd|secret|token(?!s|i)|api[_-]?key|access[_-]?key|private[_-]?key|account[_-]?key|"
    r"encryption[_-]?key|credential|authorization|\bauth\b|cookie)[A-Za-z0-9_.-]{0,40}"
)
_MARK = re.escape(REDACTED)
# What an earlier pattern or pass has handled.
_DONE = rf"{_MARK}(?:[\s,;&\"'()\[\]{{}}\\]|$)"
_QUOTED = (
    r"[bBrRuU]{0,2}(?:"
    r'\\{1,3}"(?:(?!\\{1,3}")[^\n])*(?:\\{1,3}")?|'  # JSON inside JSON
    r'"(?:[^"\\\n]|\\.)*"?|'
    r"'(?:[^'\\\n]|\\.)*'?)"
)
_TO_SPACE = rf"(?:{_MARK}|(?!&[\w.-]{{1,40}}=)\S)+"
_TO_LINE_END = rf"(?:{_MARK}|(?!(?:,|[)}}\]]+,?)(?:\s|$))[^\n])+"

# Each pattern is linear in the text: no unbounded repetition comes before something that must follow it.
# The text of the group "kept" is kept.
_SHAPES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?s)-----BEGIN [A-Z0-9 ]{1,40}-----.*?(?:-----END [A-Z0-9 ]{1,40}-----|\Z)",
        # A password may contain a slash, although it should be escaped.
        r"(?P<kept>://)(?:[^\s\"'<>/?#]{1,512}(?=@)|[^\s\"'<>/?#:@]{0,128}:[^\s\"'<>@]{1,512}(?=@))",
        r"(?P<kept>hooks\.slack\.com/)[A-Za-z0-9/_-]{8,}",
        r"xox[a-z](?:\.xox[a-z])?-[A-Za-z0-9-]{6,}|xapp-[A-Za-z0-9-]{6,}",
        r"(?:AKIA|ASIA|ABIA|ACCA|AGPA|AIDA|AIPA|ANPA|ANVA|AROA)[A-Z0-9]{12,}",
        r"gh[opsur]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,}",
        r"gl(?:pat|ptt|dt|rt|cbt|ft|oas|soat|agent|imt|ffct)-[A-Za-z0-9_.-]{16,}",
        r"AIza[A-Za-z0-9_-]{20,}|ya29\.[A-Za-z0-9_.-]{16,}|GOCSPX-[A-Za-z0-9_-]{16,}",
        r"(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{8,}|whsec_[A-Za-z0-9+/=]{16,}",
        r"\bsk-(?=[A-Za-z_-]{0,40}[0-9])[A-Za-z0-9_-]{16,}",
        r"\b(?:npm|hf|shpat|dckr_pat|dop_v1|lin_api|sntrys)_[A-Za-z0-9_=-]{16,}|\bpypi-[A-Za-z0-9_-]{16,}",
        r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|\bdapi[0-9a-f]{32}",
        r"eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)*",
        r"(?P<kept>(?i:\bbearer)\s{1,5})[A-Za-z0-9._~+/=-]{6,}",
        r"(?P<kept>(?i:\bbasic)\s{1,5})(?=[a-z+/]{0,400}[A-Z0-9=])[A-Za-z0-9+/]{8,}={0,2}",
        # Signed URLs of object storage, keys in query strings.
        r"(?i)(?P<kept>[?&](?:sig|signature|key|code|x-amz-(?:signature|credential|security-token))=)[^&\s\"'<>]+",
        # ClickHouse and SQL: a password after a keyword, and credentials by position.
        r"(?i)(?P<kept>\b(?:password|identified(?:\s+with\s+\w{1,40})?\s+by)\s{1,5})'(?:[^'\\\n]|\\.)*'?",
        r"(?i)(?P<kept>\b(?:s3|s3cluster|gcs)\s?\((?:\s?\w{1,60},)?\s{0,5}'[^'\n]{0,2000}',\s{0,5})'[^'\n]*'?,\s{0,5}'[^'\n]*'?",
    )
)
# A command-line option, an XML element, a pair, a YAML block, a name and a quoted value, a setting, a rest of a line.
_NAME = re.compile(rf"(?i){_KEY}")
_NAMED = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?i)(?P<kept>--?[a-z0-9-]{{0,40}}{_KEY}\s{{1,3}})(?:{_QUOTED}|[^\s\"'=:-]{_TO_SPACE})",
        rf"(?i)(?P<kept><[a-z0-9_.:-]{{0,40}}{_KEY}>)[^<]+",
        rf"(?i)(?P<kept>{_KEY}[\"']\s{{0,3}},\s{{0,3}}){_QUOTED}",
        rf"(?i)(?P<kept>{_KEY}\\{{0,3}}[\"']?\s{{0,5}}:[ \t]{{0,5}})[|>][+-]?[ \t]{{0,5}}(?:\n[ \t]+[^\n]+)+",
        rf"(?i)(?P<kept>{_KEY}\\{{0,3}}[\"']?\s{{0,5}}(?:=>|:=|==?|:)\s{{0,5}}){_QUOTED}",
        rf"(?i)(?P<kept>{_KEY}\\{{0,3}}[\"']?\s{{0,5}}(?:=>|:=|==?)[ \t]{{0,5}}+)(?![\"']|{_DONE}){_TO_SPACE}",
        rf"(?i)(?P<kept>{_KEY}\\{{0,3}}[\"']?\s{{0,5}}:[ \t]{{0,5}}+)(?![\"'|>=]|\\+[\"']|{_DONE}){_TO_LINE_END}",
    )
)


def secret_values(settings: Settings) -> frozenset[str]:
    """Return the values of all secret settings, for `redact`."""
    values = (getattr(settings, name) for name in type(settings).model_fields)
    return frozenset(
        text
        for value in values
        if isinstance(value, SecretStr) and len(text := value.get_secret_value()) >= MIN_SECRET_CHARACTERS
    )


def redact(text: str, secrets: Collection[str] = ()) -> str:
    """Return the text without secrets and control characters. A second pass changes nothing.

    Removed are the given values (plain, URL-encoded, and escaped as in JSON and Python) and what looks like a secret:
    tokens of well-known services, JWTs, Authorization headers, PEM blocks, credentials in URLs, and the values of names
    such as `password`. In doubt, text is removed.
    """
    clean = _UNFIT.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    for form in sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True):
        clean = clean.replace(form, REDACTED)
    for pattern in _SHAPES + (_NAMED if _NAME.search(clean) else ()):
        clean = pattern.sub(_replacement, clean)
    return clean


def _forms(secret: str) -> Iterator[str]:
    if len(secret) >= MIN_SECRET_CHARACTERS:
        yield from (secret, quote(secret, safe=""), quote(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1])


def _replacement(match: re.Match[str]) -> str:
    return match.groupdict().get("kept", "") + REDACTED
