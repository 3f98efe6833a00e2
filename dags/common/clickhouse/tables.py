"""Every table and dictionary of the project in ClickHouse: the single source of the schema.

To add a column, add it here and apply the schema. A changed type, key or TTL needs a migration by hand: applying the
schema then fails and says so.
"""

from dags.common.clickhouse.ddl import Column, Dictionary, Placement, SchemaObject, SkipIndex, Table
from dags.common.clickhouse.views import WEB_VIEWS

# The number of inserts whose deduplication tokens a table keeps where it is not replicated.
DEDUPLICATION_WINDOW_INSERTS = 1000

# The days for which a rate holds after its own day when there is no newer rate.
MAX_CARRY_DAYS = 31

SCHEMA_MIGRATIONS = Table(
    name="schema_migrations",
    comment="The changes that the schema command and job have applied.",
    columns=(
        Column("object", "String", "Table or dictionary."),
        Column("statement_hash", "String", "Hash of the statements that create it."),
        Column("statements", "Array(String)", "The statements that were run; empty if it matched already."),
        Column("applied_by", "String", "Run id, or user and machine."),
        Column("applied_at", "DateTime64(3, 'UTC')", "When it was recorded.", default="now64(3, 'UTC')"),
    ),
    engine="MergeTree",
    order_by=("object", "applied_at"),
    placement=Placement.EVERY_NODE,
)

EXCHANGE_RATE = Table(
    name="exchange_rate",
    comment="Units of a currency for one US dollar, by day.",
    columns=(
        Column("currency", "LowCardinality(String)", "ISO 4217 code."),
        Column("date", "Date", "Day that the rate is for, UTC."),
        Column("rate", "Decimal64(10)", "Units of the currency for one US dollar."),
        Column("version", "UInt64", "Of several rows of one currency and day, the highest version counts."),
    ),
    engine="ReplacingMergeTree",
    engine_arguments=("version",),
    order_by=("currency", "date"),
    placement=Placement.EVERY_NODE,
    unreplicated_settings={"non_replicated_deduplication_window": DEDUPLICATION_WINDOW_INSERTS},
)

EXCHANGE_RATE_DICT = Dictionary(
    name="exchange_rate_dict",
    comment="Units of a currency for one US dollar on a day. A rate holds until the next one, at most for a month.",
    columns=(
        Column("currency", "String", "ISO 4217 code."),
        Column("start_date", "Date", "First day of the rate."),
        Column("end_date", "Date", "Last day of the rate."),
        # Nullable, so that an unknown rate reads as NULL and never as zero.
        Column("rate", "Nullable(Decimal64(10))", "Units of the currency for one US dollar.", default="NULL"),
    ),
    primary_key=("currency",),
    # The rate of a currency that is no longer quoted must become unknown, not hold for years.
    source_query=f"""
        SELECT
            currency,
            date AS start_date,
            least(
                date + {MAX_CARRY_DAYS},
                leadInFrame(date - 1, 1, date + {MAX_CARRY_DAYS}) OVER (
                    PARTITION BY currency ORDER BY date ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
                )
            ) AS end_date,
            rate
        FROM {{database}}.exchange_rate FINAL
    """,  # noqa: S608 - a constant of this module
    # A text key needs the complex form; newer servers choose it on their own, older ones reject the plain form.
    layout="COMPLEX_KEY_RANGE_HASHED()",
    lifetime_seconds=(3000, 3600),
    value_range=("start_date", "end_date"),
)

EVENTS = Table(
    name="events",
    comment="Events, and the page views of access logs. Of several rows of one uuid the newest counts.",
    columns=(
        Column("uuid", "UUID", "Identity of the event."),
        Column("event", "LowCardinality(String)", "Name, such as $pageview."),
        Column("team_id", "Int64", "Team whose event it is."),
        Column("distinct_id", "String", "The visitor as the source names it; for access logs a keyed hash."),
        Column("person_id", "UUID", "The person when the event was loaded; an override may name another person."),
        Column("session_id", "String", "Visit; empty when the source has none."),
        Column("timestamp", "DateTime64(6, 'UTC')", "When it happened."),
        Column("inserted_at", "DateTime64(6, 'UTC')", "When it was loaded.", default="now64(6, 'UTC')"),
        Column("properties", "String", "All properties as the source sent them: a JSON object."),
        Column("host", "LowCardinality(String)", "Host of the page."),
        Column("pathname", "LowCardinality(String)", "Path of the page, without the query string."),
        Column("referring_domain", "LowCardinality(String)", "Host that led here; $direct when there is none."),
        Column("browser", "LowCardinality(String)", "Browser family."),
        Column("os", "LowCardinality(String)", "Operating system family."),
        Column("device_type", "LowCardinality(String)", "Desktop, Mobile or Tablet; empty when unknown."),
        Column("viewport_width", "Int32", "Width of the window, pixels; 0 when unknown."),
        Column("viewport_height", "Int32", "Height of the window, pixels; 0 when unknown."),
        Column("utm_source", "LowCardinality(String)", "Campaign: source."),
        Column("utm_medium", "LowCardinality(String)", "Campaign: medium."),
        Column("utm_campaign", "LowCardinality(String)", "Campaign: name."),
        Column("utm_term", "LowCardinality(String)", "Campaign: term."),
        Column("utm_content", "LowCardinality(String)", "Campaign: content."),
        Column("country_code", "LowCardinality(String)", "ISO 3166 code of two letters; empty when unknown."),
        Column("region", "LowCardinality(String)", "First subdivision of the country; empty when unknown."),
        Column("city", "LowCardinality(String)", "City; empty when unknown."),
        Column("has_gclid", "UInt8", "1 if the page was opened from a Google ad: its click id was in the address."),
        Column("has_gad_source", "UInt8", "1 if Google's parameter for the kind of the ad was in the address."),
        Column("has_fbclid", "UInt8", "1 if the page was opened from Facebook or Instagram: its click id is there."),
        Column("object_id", "UInt64", "Hash of key and etag of the object that the row came from."),
    ),
    engine="ReplacingMergeTree",
    engine_arguments=("inserted_at",),
    partition_by="toYYYYMM(timestamp)",
    order_by=("team_id", "toDate(timestamp)", "event", "cityHash64(distinct_id)", "cityHash64(uuid)"),
    placement=Placement.SHARDED,
    # All events of a visitor are on one shard.
    sharding_key="sipHash64(distinct_id)",
    unreplicated_settings={"non_replicated_deduplication_window": DEDUPLICATION_WINDOW_INSERTS},
    # Squashes and deletes look for the rows of few visitors or persons among all. With one false positive in a
    # thousand, a query may look for hundreds of them.
    skip_indexes=(
        SkipIndex("distinct_id_index", "distinct_id", "bloom_filter(0.001)"),
        SkipIndex("person_id_index", "person_id", "bloom_filter(0.001)"),
    ),
)

EVENTS_REJECTED = Table(
    name="events_rejected",
    comment="Lines of objects that are not events, with the reason.",
    columns=(
        Column("team_id", "Int64", "Team whose object it is."),
        Column("object", "String", "Key of the object."),
        Column("line", "UInt64", "Number of the line, or of the row of a Parquet file, from 1."),
        Column("reason", "LowCardinality(String)", "Why it is not an event."),
        Column("raw", "String", "The start of the line; without addresses if it is from an access log."),
        Column("object_id", "UInt64", "Hash of key and etag of the object."),
        Column("run_id", "String", "Run that loaded the object."),
        Column("rejected_at", "DateTime64(6, 'UTC')", "When it was loaded.", default="now64(6, 'UTC')"),
    ),
    engine="MergeTree",
    order_by=("team_id", "object", "line"),
    placement=Placement.SHARDED,
    sharding_key="sipHash64(object)",
)

INGESTED_OBJECTS = Table(
    name="ingested_objects",
    comment="The objects that are loaded into events. An object is identified by its key and its etag.",
    columns=(
        Column("object", "String", "Key of the object."),
        Column("etag", "String", "Etag of its content."),
        Column("version", "UInt64", "Of several rows of one object, the highest counts."),
        Column("object_id", "UInt64", "Hash of key and etag, as in events."),
        Column("team_id", "Int64", "Team whose object it is."),
        Column("format", "LowCardinality(String)", "How it was read."),
        Column(
            "state",
            "LowCardinality(String)",
            "loading (rows may be in events already), loaded, replaced (by new content of the same key; its rows "
            "were removed from events) or failed (cannot be read; it has no rows).",
        ),
        Column("lines", "UInt64", "Lines, or rows of a Parquet file."),
        Column("rows", "UInt64", "Lines that became events."),
        Column(
            "rows_by_day",
            "Map(Date, UInt64)",
            "Lines that became events, by UTC day of the event. Written before any row is inserted; "
            "while loading, also the days of rows that a dead load left. A day may have 0 rows.",
        ),
        Column("rejected_rows", "UInt64", "Lines in events_rejected."),
        Column("skipped_rows", "Map(String, UInt64)", "Lines left out on purpose, by rule."),
        Column("size_bytes", "UInt64", "Size of the object as stored."),
        Column("first_timestamp", "DateTime64(6, 'UTC')", "Timestamp of its earliest event; 1970 without events."),
        Column("last_timestamp", "DateTime64(6, 'UTC')", "Timestamp of its latest event; 1970 without events."),
        Column("reason", "String", "Why it failed."),
        Column("run_id", "String", "Run that wrote this row."),
        Column("updated_at", "DateTime64(6, 'UTC')", "When this row was written.", default="now64(6, 'UTC')"),
    ),
    engine="ReplacingMergeTree",
    engine_arguments=("version",),
    order_by=("object", "etag"),
    placement=Placement.EVERY_NODE,
    unreplicated_settings={"non_replicated_deduplication_window": DEDUPLICATION_WINDOW_INSERTS},
)

PERSON_DISTINCT_ID_OVERRIDES = Table(
    name="person_distinct_id_overrides",
    comment="The persons of distinct ids whose events still name another person. Keyed by team and distinct_id.",
    columns=(
        Column("team_id", "Int64", "Team; the same distinct_id of another team is another visitor."),
        Column("distinct_id", "String", "The visitor as the source names it."),
        Column("person_id", "UUID", "The person that the visitor belongs to."),
        Column("version", "Int64", "Of several rows of one team and distinct_id, the highest counts."),
        Column("is_deleted", "UInt8", "1 if no override holds anymore: the person of the event counts.", "0"),
        Column("_timestamp", "DateTime64(6, 'UTC')", "When the row was written.", default="now64(6, 'UTC')"),
    ),
    engine="ReplacingMergeTree",
    engine_arguments=("version",),
    order_by=("team_id", "distinct_id"),
    placement=Placement.EVERY_NODE,
    unreplicated_settings={"non_replicated_deduplication_window": DEDUPLICATION_WINDOW_INSERTS},
)

EVENT_DAY_CHANGES = Table(
    name="event_day_changes",
    comment="Changes of events in place: squashes, deletions, new overrides. One row for each day of a change.",
    columns=(
        Column("day", "Date", "Day of the events, UTC; 1970-01-01 for a group of overrides that was looked up."),
        Column("change_id", "String", "Identity of the change."),
        Column("state", "LowCardinality(String)", "open (it may be in progress) or closed (its last effect is there)."),
        Column("reason", "LowCardinality(String)", "squash, delete or overrides."),
        Column("run_id", "String", "Run that wrote this row."),
        Column("version", "UInt8", "Of several rows of one day and change, the highest counts: closed is above open."),
        Column("changed_at", "DateTime64(6, 'UTC')", "When this row was written.", default="now64(6, 'UTC')"),
    ),
    engine="ReplacingMergeTree",
    engine_arguments=("version",),
    order_by=("day", "change_id"),
    placement=Placement.EVERY_NODE,
)

WEB_PRE_AGGREGATED_TEAMS = Table(
    name="web_pre_aggregated_teams",
    comment="The teams whose web tables are computed. If no team is selected, all are.",
    columns=(
        Column("team_id", "Int64", "Team."),
        Column("is_selected", "UInt8", "1 if the team is selected, else 0."),
        Column("version", "UInt64", "Of several rows of one team, the highest counts."),
    ),
    engine="ReplacingMergeTree",
    engine_arguments=("version",),
    order_by=("team_id",),
    placement=Placement.EVERY_NODE,
)

WEB_SESSIONS = Table(
    name="web_sessions",
    comment="One row for each session, of the day on which it started (UTC). web_session_days has the computed days.",
    columns=(
        Column("team_id", "Int64", "Team."),
        Column("session_id", "String", "Session. An id that is used again after 24 hours is another session."),
        Column("person_id", "UUID", "Visitor: the person of the first pageview, after overrides."),
        Column("started_at", "DateTime64(6, 'UTC')", "First event."),
        Column("duration_seconds", "Int64", "From the first to the last event, in whole clock seconds."),
        Column("pageviews", "UInt32", "Pageviews: the length of pages."),
        Column("is_bounce", "UInt8", "1 if the session has one pageview, else 0."),
        Column("entry_host", "LowCardinality(String)", "Host of the first pageview."),
        Column("entry_pathname", "LowCardinality(String)", "Path of the first pageview."),
        Column("exit_host", "LowCardinality(String)", "Host of the last pageview."),
        Column("exit_pathname", "LowCardinality(String)", "Path of the last pageview."),
        # From here to city: of the first pageview.
        Column("referring_domain", "LowCardinality(String)", "Host that led to the session; $direct without one."),
        Column(
            "channel", "LowCardinality(String)", "Kind of source, such as Organic Search; see docs/web-sessions.md."
        ),
        Column("utm_source", "LowCardinality(String)", "Campaign: source."),
        Column("utm_medium", "LowCardinality(String)", "Campaign: medium."),
        Column("utm_campaign", "LowCardinality(String)", "Campaign: name."),
        Column("utm_term", "LowCardinality(String)", "Campaign: term."),
        Column("utm_content", "LowCardinality(String)", "Campaign: content."),
        Column("has_gclid", "UInt8", "1 if the address has the click id gclid, else 0."),
        Column("has_gad_source", "UInt8", "1 if the address has gad_source, else 0."),
        Column("has_fbclid", "UInt8", "1 if the address has the click id fbclid, else 0."),
        Column("browser", "LowCardinality(String)", "Browser family."),
        Column("os", "LowCardinality(String)", "Operating system family."),
        Column("device_type", "LowCardinality(String)", "Desktop, Mobile or Tablet; empty when unknown."),
        Column("viewport_width", "Int32", "Width of the window, pixels; 0 when unknown."),
        Column("viewport_height", "Int32", "Height of the window, pixels; 0 when unknown."),
        Column("country_code", "LowCardinality(String)", "ISO 3166 code of two letters; empty when unknown."),
        Column("region", "LowCardinality(String)", "Region of the country; empty when unknown."),
        Column("city", "LowCardinality(String)", "City; empty when unknown."),
        Column(
            "pages",
            "Array(Tuple(host LowCardinality(String), pathname LowCardinality(String), at DateTime64(6, 'UTC')))",
            "Host, path and time of each pageview, in order.",
        ),
    ),
    engine="MergeTree",
    partition_by="toYYYYMMDD(started_at)",
    order_by=("team_id", "started_at", "session_id"),
    placement=Placement.EVERY_NODE,
)

WEB_SESSION_DAYS = Table(
    name="web_session_days",
    comment="The days of web_sessions that were computed, and what is left out of them.",
    columns=(
        Column("day", "Date", "Day, UTC."),
        Column("input_fingerprint", "UInt64", "What the day was computed from: a stale day has another one by now."),
        Column("sessions", "UInt64", "Sessions that started on the day: rows of web_sessions."),
        Column("pageviews", "UInt64", "Pageviews of these sessions, some of them after midnight."),
        Column("raw_pageviews", "UInt64", "Pageviews in events at the day: those in sessions, and those left out."),
        Column("left_out", "Map(String, UInt64)", "Pageviews at the day that are in no session, by rule."),
        Column("run_id", "String", "Run that computed the day."),
        Column("computed_at", "DateTime64(6, 'UTC')", "When the day was swapped in.", default="now64(6, 'UTC')"),
        Column("version", "UInt64", "Of several rows of one day, the highest counts."),
    ),
    engine="ReplacingMergeTree",
    engine_arguments=("version",),
    order_by=("day",),
    placement=Placement.EVERY_NODE,
)

ANALYTICS_DIGEST_DAILY = Table(
    name="analytics_digest_daily",
    comment="One row for each team and day: visitors, sessions, pageviews, top pages, revenue in US dollars.",
    columns=(
        Column("team_id", "Int64", "Team."),
        Column("day", "Date", "Day, UTC."),
        Column("visitors", "Nullable(UInt64)", "Visitors, exact; NULL when the web tables have no row of the team."),
        Column("sessions", "Nullable(UInt64)", "Sessions, exact; NULL as visitors."),
        Column("pageviews", "Nullable(UInt64)", "Pageviews; NULL as visitors."),
        Column(
            "top_pages",
            "Array(Tuple(String, String, UInt64))",
            "Host, path and pageviews of the pages with most pageviews, the most first.",
        ),
        Column("revenue_events", "UInt64", "All revenue events."),
        Column("revenue_events_converted", "UInt64", "Revenue events that revenue_usd is the sum of."),
        Column("revenue_events_without_amount", "UInt64", "Revenue events whose amount is missing or not a number."),
        Column(
            "revenue_events_without_rate",
            "UInt64",
            "Revenue events in an unknown currency, or without a rate.",
        ),
        Column(
            "currencies_without_rate",
            "Array(String)",
            "Their currencies; an empty text if an event has none.",
        ),
        Column(
            "revenue_usd",
            "Nullable(Decimal(38, 2))",
            "US dollars of the converted events; NULL if there are revenue events and none could be converted.",
        ),
    ),
    engine="MergeTree",
    partition_by="toYYYYMMDD(day)",
    order_by=("team_id", "day"),
    placement=Placement.EVERY_NODE,
)

# In the order of creation: dictionaries and views come after their tables.
SCHEMA: tuple[SchemaObject, ...] = (
    SCHEMA_MIGRATIONS,
    EXCHANGE_RATE,
    EXCHANGE_RATE_DICT,
    EVENTS,
    EVENTS_REJECTED,
    INGESTED_OBJECTS,
    PERSON_DISTINCT_ID_OVERRIDES,
    EVENT_DAY_CHANGES,
    WEB_PRE_AGGREGATED_TEAMS,
    WEB_SESSIONS,
    WEB_SESSION_DAYS,
    ANALYTICS_DIGEST_DAILY,
    *WEB_VIEWS,
)
