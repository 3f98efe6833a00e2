"""Page views from web access logs: which lines are page views, their visitors and visits.

    common           address identity user [time] "request" status bytes
    combined         common "referrer" "agent"
    vhost_combined   host:port combined, also without the port
    nginx's main     combined "X-Forwarded-For"

The format is detected by line, and further fields at the end are ignored. A page view is a GET request for a page by a
visitor who is not a bot, with an answer that `LogRules` counts. Other well-formed lines are skipped and counted by the
first rule below that matches; lines in another format, such as the half lines of a rotated file, are rejected. A
visitor is a keyed hash of team, address and user agent. The address itself is never stored, not even in the raw text of
a rejected line. Query strings are dropped, except for the campaign parameters.

The session of a page view is a visit, as `visits.py` describes it.
"""

import hashlib
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from dags.common.clickhouse.query import quoted
from dags.common.settings import Settings, SettingsError
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
from dags.events.user_agents import NOT_LOGGED
from dags.events.visits import with_visits

# An IPv6 address has at least two colons, a host with a port one.
ADDRESS_PATTERN = r"\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f:]*::[0-9A-Fa-f:.]*|(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}"
# The groups of LINE_PATTERN, from 1. A host may stand before the address, with its port or without. Apache escapes a
# quote inside a field as \", nginx as \x22: the last two groups accept unescaped ones.
HOST_WITH_PORT, ADDRESS_AFTER_PORT, HOST_ALONE, ADDRESS_AFTER_HOST, ADDRESS, TIME, REQUEST, STATUS = range(1, 9)
TAIL, REFERRER, AGENT, FORWARDED_FOR, LOOSE_REFERRER, LOOSE_AGENT = range(9, 15)
LINE_PATTERN = (
    rf"^(?:(\[[0-9A-Fa-f:.]+\]|[^\s:]+):\d{{1,5}} ([0-9A-Za-z:]\S*)|([\w.-]*[A-Za-z][\w.-]*) ({ADDRESS_PATTERN})|(\S+))"
    r' \S+ (?:.*?) \[([^\]]+)\] "(.*?)" (\d{3}) (?:\d+|-)'
    r'((?: "((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)"(?: "([0-9A-Fa-f:., \[\]]+|unknown)")?(?: [^"]*(?:"[^"]*"[^"]*)*)?'
    r'| "(.*?)" "(.*)")?)\s*$'
)
REQUEST_PATTERN = r"^([A-Z]+) (/\S*|[A-Za-z][A-Za-z0-9+.-]*://\S*) HTTP/\d(?:\.\d+)?$"
ANY_REQUEST_PATTERN = r"^([A-Z]+) \S+ HTTP/\d(?:\.\d+)?$"
TIME_FORMAT = "%d/%b/%Y:%H:%i:%S %z"
ASSET_PATTERN = (
    r"(?i)(?:\.(?:png|jpe?g|gif|svg|ico|webp|avif|bmp|tiff?|css|js|mjs|map|woff2?|ttf|otf|eot|mp3|mp4|m4a|webm|ogg|wav|avi"
    r"|mov|swf)|/robots\.txt)$"
)
DATA_FILE_PATTERN = r"(?i)\.(?:xml|json|rss|atom)$"
API_PATTERN = r"^/+api(?:/|$)"
# The networks of proxies inside a company, which are never visitors from outside.
PRIVATE_NETWORKS = (
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
)

# Browser, os and device_type follow from the agent, session_id from the other page views.
NOT_IN_LOGS = ("browser", "os", "device_type", "session_id", "country_code", "region", "city")
UTM_PARAMETERS = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")
CLICK_IDS = ("gclid", "gad_source", "fbclid")

KEY_TABLE = "visitor_hash_key"
PROPERTIES = (
    "toJSONString(map('$pathname', pathname, '$referring_domain', referring_domain, '$raw_user_agent', "
    f"if(agent = '{NOT_LOGGED}', '', agent)))"
)


@dataclass(frozen=True)
class LogRules:
    """Which answers and paths are page views, and which addresses are proxies."""

    count_redirects: bool = False
    count_partial_answers: bool = False
    count_api_paths: bool = False
    count_data_files: bool = False
    trusted_proxies: Sequence[str] = ()


def log_rules_from_settings(settings: Settings) -> LogRules:
    """Return the rules of the settings. Raises SettingsError when a trusted proxy is neither address nor network."""
    return LogRules(
        count_redirects=settings.access_log_count_redirects,
        count_partial_answers=settings.access_log_count_partial_answers,
        count_api_paths=settings.access_log_count_api_paths,
        count_data_files=settings.access_log_count_data_files,
        trusted_proxies=tuple(map(_network, settings.access_log_trusted_proxies.replace(",", " ").split())),
    )


def _network(proxy: str) -> str:
    try:
        return str(ipaddress.ip_network(proxy, strict=False))
    except ValueError:
        raise SettingsError(
            "ACCESS_LOG_TRUSTED_PROXIES has an entry that is neither an address nor a network such as 203.0.113.0/24."
        ) from None


def visitor_key_table(key: SecretStr) -> Mapping[str, Any]:
    """Return the key of the visitor hash as an external table, so that no query log contains it."""
    digest = hashlib.sha256(key.get_secret_value().encode()).digest()
    halves = {"low": int.from_bytes(digest[:8], "big"), "high": int.from_bytes(digest[8:16], "big")}
    return {"name": KEY_TABLE, "structure": [("low", "UInt64"), ("high", "UInt64")], "data": [halves]}


def parameters(rules: LogRules) -> dict[str, object]:
    """Return the parameters of `rows_statement`, apart from those of the objects."""
    return {
        "count_redirects": int(rules.count_redirects),
        "count_partial_answers": int(rules.count_partial_answers),
        "count_api_paths": int(rules.count_api_paths),
        "count_data_files": int(rules.count_data_files),
        # With named proxies, only they are trusted. Otherwise the first address of a list is, unless it is private.
        "is_any_proxy_trusted": int(not rules.trusted_proxies),
        "proxies": [*PRIVATE_NETWORKS, *rules.trusted_proxies],
        "line_pattern": LINE_PATTERN,
        "request_pattern": REQUEST_PATTERN,
        "any_request_pattern": ANY_REQUEST_PATTERN,
        "time_format": TIME_FORMAT,
        "asset_pattern": ASSET_PATTERN,
        "data_file_pattern": DATA_FILE_PATTERN,
        "api_pattern": API_PATTERN,
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
        "replaceRegexpAll(replaceRegexpOne(clean_line, '^(?:[^\\\\s:]+:\\\\d+ )?\\\\S+', '<address>'), "
        "%(address_pattern)s, '<address>')"
    )
    return f"""
    WITH (SELECT (assumeNotNull(any(low)), assumeNotNull(any(high))) FROM {KEY_TABLE}) AS visitor_key
    SELECT
        toUInt32(%(chunk)s) AS chunk, object, etag, line, team_id, object_id,
        multiIf(
            empty(parts), if(match(clean_line, '^\\\\s*$'), 'blank line', ''),
            empty(request),
            multiIf(
                match(parts[{REQUEST}], %(any_request_pattern)s) AND NOT startsWith(parts[{REQUEST}], 'GET '),
                'method is not GET', 'request is not METHOD path HTTP/x'
            ),
            request[1] != 'GET', 'method is not GET',
            startsWith(status, '3') AND status != '304' AND NOT %(count_redirects)s, 'redirect (3xx)',
            status = '206' AND NOT %(count_partial_answers)s, 'partial answer (206)',
            NOT match(status, '^[23]'), 'status is not 2xx or 3xx',
            match(pathname, %(asset_pattern)s), 'asset',
            NOT %(count_data_files)s AND match(pathname, %(data_file_pattern)s), 'data file',
            NOT %(count_api_paths)s AND match(pathname, %(api_pattern)s), 'API path',
            ''
        ) AS skipped_by,
        multiIf(
            skipped_by != '', '',
            empty(parts), 'not a line of a known log format',
            match(address, '^[0-9.]*$') AND NOT isIPv4String(address), 'address is cut off',
            time IS NULL, 'time is not a time',
            toYear(time) NOT BETWEEN {MIN_YEAR} AND {MAX_YEAR}, 'time is out of range',
            time > now() + INTERVAL 1 DAY, 'time is more than a day ahead',
            ''
        ) AS rejected_because,
        if(rejected_because = '', '', substringUTF8({without_addresses}, 1, {MAX_RAW_CHARACTERS})) AS raw,
        if({IS_EVENT}, if(has_agent, concat(parts[{AGENT}], parts[{LOOSE_AGENT}]), '{NOT_LOGGED}'), '') AS agent,
        {line_uuid()} AS uuid,
        '$pageview' AS event,
        if({IS_EVENT}, lower(hex(sipHash128Keyed(visitor_key, team_id, client, agent))), '') AS distinct_id,
        {person_id("team_id", "distinct_id")} AS person_id,
        toDateTime64(ifNull(time, toDateTime(0, 'UTC')), 6, 'UTC') AS timestamp,
        '' AS properties,
        lower(if(is_path, concat(parts[{HOST_WITH_PORT}], parts[{HOST_ALONE}]), domain(target))) AS host,
        pathname,
        if(referrer IN ('', '-'), '$direct', domain(referrer)) AS referring_domain,
        {campaign},
        {click_ids},
        toInt32(0) AS viewport_width, toInt32(0) AS viewport_height,
        {no_values}
    FROM (
        SELECT
            *,
            -- What log rotation and editors leave at the edges of a file; the regexps need UTF-8.
            toValidUTF8(trimLeft(raw_line, '\\0\\xEF\\xBB\\xBF')) AS clean_line,
            extractGroups(clean_line, %(line_pattern)s) AS parts,
            extractGroups(parts[{REQUEST}], %(request_pattern)s) AS request,
            request[2] AS target,
            -- A path may begin with two slashes, which does not make its first part a host.
            startsWith(target, '/') AS is_path,
            if(is_path, extract(target, '^[^?#]*'), path(target)) AS pathname,
            parts[{STATUS}] AS status,
            concat(parts[{REFERRER}], parts[{LOOSE_REFERRER}]) AS referrer,
            parts[{TAIL}] != '' AS has_agent,
            concat(parts[{ADDRESS}], parts[{ADDRESS_AFTER_PORT}], parts[{ADDRESS_AFTER_HOST}]) AS address,
            {client()} AS client,
            toTimeZone(parseDateTimeOrNull(parts[{TIME}], %(time_format)s), 'UTC') AS time
        FROM ({objects_source(Format.ACCESS_LOG)})
    )
    """  # noqa: S608 - constants of this module


def client() -> str:
    """Return the expression of the visitor's address: that of X-Forwarded-For if a trusted proxy logged or sent it."""
    is_address = "isIPv4String({0}) OR isIPv6String({0})"
    is_proxy = "arrayExists(network -> isIPAddressInRange({}, network), %(proxies)s)"
    # A name in place of the address is no proxy, but only an address can be compared with networks.
    sender = f"if({is_address.format('address')}, address, '0.0.0.0')"
    addresses = (
        f"arrayFilter(one -> {is_address.format('one')}, extractAll(parts[{FORWARDED_FOR}], %(address_pattern)s))"
    )
    outside = f"arrayFilter(one -> NOT {is_proxy.format('one')}, forwarded)"
    return f"""
        multiIf(
            empty({addresses} AS forwarded), address,
            NOT %(is_any_proxy_trusted)s AND NOT {is_proxy.format(sender)}, address,
            empty({outside} AS outside), forwarded[1],
            %(is_any_proxy_trusted)s, outside[1],
            outside[-1]
        )
    """


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
