"""Page views from web access logs in the combined format: which lines are page views, their visitors and visits.

    address identity user [time] "request" status bytes "referrer" "agent"

A page view is a GET request for a page by a visitor who is not a bot, answered with 2xx or 3xx. Other well-formed lines
are skipped and counted by the first rule below that matches; lines in another format are rejected. A visitor is a keyed
hash of team, address and user agent. The address itself is never stored, not even in the raw text of a rejected line.
Query strings are dropped, except for the campaign parameters.

The session of a page view is a visit, as `visits.py` describes it.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

from dags.common.clickhouse.query import quoted
from dags.events.objects import Format
from dags.events.staging_table import (
    EVENT_NAMES,
    IS_EVENT,
    MAX_RAW_CHARACTERS,
    MAX_YEAR,
    MIN_YEAR,
    line_uuid,
    objects_source,
    person_id,
    text,
)
from dags.events.visits import with_visits

# Apache escapes a quote inside a field as \", nginx as \x22. The first alternative at the end allows fields after the
# agent; the second accepts unescaped quotes.
LINE_PATTERN = (
    r'^(\S+) \S+ (?:.*?) \[([^\]]+)\] "(.*?)" (\d{3}) (?:\d+|-) '
    r'(?:"((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)"(?: [^"]*(?:"[^"]*"[^"]*)*)?|"(.*?)" "(.*)")\s*$'
)
REQUEST_PATTERN = r"^([A-Z]+) (\S+) HTTP/\d(?:\.\d+)?$"
TIME_FORMAT = "%d/%b/%Y:%H:%i:%S %z"
ASSET_PATTERN = (
    r"(?i)(?:\.(?:png|jpe?g|gif|svg|ico|webp|avif|bmp|tiff?|css|js|mjs|map|woff2?|ttf|otf|eot|mp3|mp4|m4a|webm|ogg|wav|avi"
    r"|mov|swf)|/robots\.txt)$"
)
ADDRESS_PATTERN = r"\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f:]*::[0-9A-Fa-f:.]*|(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}"

# Browser, os and device_type follow from the agent, session_id from the other page views.
NOT_IN_LOGS = ("browser", "os", "device_type", "session_id", "country_code", "region", "city")
UTM_PARAMETERS = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")
CLICK_IDS = ("gclid", "gad_source", "fbclid")

KEY_TABLE = "visitor_hash_key"
PROPERTIES = "toJSONString(map('$pathname', pathname, '$referring_domain', referring_domain, '$raw_user_agent', agent))"


def visitor_key_table(key: SecretStr) -> Mapping[str, Any]:
    """Return the key of the visitor hash as an external table, so that no query log contains it."""
    digest = hashlib.sha256(key.get_secret_value().encode()).digest()
    halves = {"low": int.from_bytes(digest[:8], "big"), "high": int.from_bytes(digest[8:16], "big")}
    return {"name": KEY_TABLE, "structure": [("low", "UInt64"), ("high", "UInt64")], "data": [halves]}


def patterns() -> dict[str, str]:
    """Return the parameters of `rows_statement`, apart from those of the objects."""
    return {
        "line_pattern": LINE_PATTERN,
        "request_pattern": REQUEST_PATTERN,
        "time_format": TIME_FORMAT,
        "asset_pattern": ASSET_PATTERN,
        "address_pattern": ADDRESS_PATTERN,
    }


def rows_statement() -> str:
    """Return a SELECT of every line of access logs, in the columns of the staging table.

    Browser, system, device, bots and visits follow in `page_views_statement`, which needs all lines and their agents.
    """
    no_values = ", ".join(f"'' AS {name}" for name in NOT_IN_LOGS)
    campaign = ", ".join(
        text(f"decodeURLFormComponent(extractURLParameter(target, '{name}'))") + f" AS {name}"
        for name in UTM_PARAMETERS
    )
    click_ids = ", ".join(f"extractURLParameter(target, '{name}') != '' AS has_{name}" for name in CLICK_IDS)
    without_addresses = (
        "replaceRegexpAll(replaceRegexpOne(raw_line, '^\\\\S+', '<address>'), %(address_pattern)s, '<address>')"
    )
    return f"""
    WITH (SELECT (assumeNotNull(any(low)), assumeNotNull(any(high))) FROM {KEY_TABLE}) AS visitor_key
    SELECT
        toUInt32(%(chunk)s) AS chunk, object, etag, line, team_id, object_id,
        multiIf(
            empty(parts), if(match(raw_line, '^\\\\s*$'), 'blank line', ''),
            empty(request), 'request is not METHOD path HTTP/x',
            request[1] != 'GET', 'method is not GET',
            NOT match(parts[4], '^[23]'), 'status is not 2xx or 3xx',
            match(pathname, %(asset_pattern)s), 'asset',
            ''
        ) AS skipped_by,
        multiIf(
            skipped_by != '', '',
            empty(parts), 'not a line of the combined log format',
            time IS NULL, 'time is not a time',
            toYear(time) NOT BETWEEN {MIN_YEAR} AND {MAX_YEAR}, 'time is out of range',
            ''
        ) AS rejected_because,
        if(rejected_because = '', '', substringUTF8({text(without_addresses)}, 1, {MAX_RAW_CHARACTERS})) AS raw,
        if({IS_EVENT}, {text("concat(parts[6], parts[8])")}, '') AS agent,
        {line_uuid()} AS uuid,
        '$pageview' AS event,
        if({IS_EVENT}, lower(hex(sipHash128Keyed(visitor_key, team_id, parts[1], agent))), '') AS distinct_id,
        {person_id("team_id", "distinct_id")} AS person_id,
        toDateTime64(ifNull(time, toDateTime(0, 'UTC')), 6, 'UTC') AS timestamp,
        '' AS properties,
        {text("domainWithoutWWW(target)")} AS host,
        {text("path(target)")} AS pathname,
        if(referrer IN ('', '-'), '$direct', {text("domain(referrer)")}) AS referring_domain,
        {campaign},
        {click_ids},
        toInt32(0) AS viewport_width, toInt32(0) AS viewport_height,
        {no_values}
    FROM (
        SELECT
            *,
            extractGroups(raw_line, %(line_pattern)s) AS parts,
            extractGroups(parts[3], %(request_pattern)s) AS request,
            request[2] AS target,
            concat(parts[5], parts[7]) AS referrer,
            toTimeZone(parseDateTimeOrNull(parts[2], %(time_format)s), 'UTC') AS time
        FROM ({objects_source(Format.ACCESS_LOG)})
    )
    """  # noqa: S608 - constants of this module


def page_views_statement(staging: str, agents: str) -> str:
    """Return a SELECT of the staged page views as events, in the order of `EVENT_NAMES`, with their visits.

    `agents` is the table of agent, browser, os, device_type and is_bot of every staged agent. The parameters are
    `first_log_chunk` and `objects`, which say what is read from `staging`, and those of `with_visits`.
    """
    columns = ", ".join(
        f"found.{name} AS {name}" if name in {"browser", "os", "device_type"} else f"staged.{name} AS {name}"
        for name in EVENT_NAMES
    )
    staged = f"""
        SELECT {columns}, staged.agent AS agent
        FROM {quoted(staging)} AS staged INNER JOIN {quoted(agents)} AS found ON found.agent = staged.agent
        WHERE {IS_EVENT} AND chunk >= %(first_log_chunk)s AND object IN %(objects)s AND NOT found.is_bot
    """  # noqa: S608 - names from code
    visitors = f"SELECT distinct_id FROM {quoted(staging)} WHERE chunk >= %(first_log_chunk)s AND {IS_EVENT}"  # noqa: S608 - names from code
    return with_visits(staged, visitors, existing="event = '$pageview'", computed_last={"properties": PROPERTIES})
