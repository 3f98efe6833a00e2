"""Every table and dictionary of the project in ClickHouse: the one source of its schema.

To add a column, add it here and apply the schema. A change of a type, a key or a TTL is a migration of its own: the
schema refuses it and says so.
"""

from dags.common.clickhouse.ddl import Column, Dictionary, Placement, SchemaObject, Table

# Inserts whose tokens a table remembers when no Keeper does it.
DEDUPLICATION_WINDOW_INSERTS = 1000

# How many days a rate holds after its own when no newer one is known.
LONGEST_CARRY_DAYS = 31

SCHEMA_MIGRATIONS = Table(
    name="schema_migrations",
    comment="What the schema command and job have applied.",
    columns=(
        Column("object", "String", "Table or dictionary."),
        Column("statement_hash", "String", "Hash of the statements that make it from nothing."),
        Column("statements", "Array(String)", "The statements that were run to get there; none if it was found so."),
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
        Column("version", "UInt64", "Of several rows of one currency and day, the highest counts."),
    ),
    engine="ReplacingMergeTree",
    engine_arguments=("version",),
    order_by=("currency", "date"),
    placement=Placement.EVERY_NODE,
    unreplicated_settings={"non_replicated_deduplication_window": DEDUPLICATION_WINDOW_INSERTS},
)

EXCHANGE_RATE_DICT = Dictionary(
    name="exchange_rate_dict",
    comment="Units of a currency for one US dollar on a day. A rate holds until the next one, for a month at the most.",
    columns=(
        Column("currency", "String", "ISO 4217 code."),
        Column("start_date", "Date", "First day of the rate."),
        Column("end_date", "Date", "Last day of the rate."),
        # Nullable, so that what is unknown reads as NULL and never as a rate of zero.
        Column("rate", "Nullable(Decimal64(10))", "Units of the currency for one US dollar.", default="NULL"),
    ),
    primary_key=("currency",),
    # The rate of a currency that is quoted no longer must become unknown, not stand for years.
    source_query=f"""
        SELECT
            currency,
            date AS start_date,
            least(
                date + {LONGEST_CARRY_DAYS},
                leadInFrame(date - 1, 1, date + {LONGEST_CARRY_DAYS}) OVER (
                    PARTITION BY currency ORDER BY date ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
                )
            ) AS end_date,
            rate
        FROM {{database}}.exchange_rate FINAL
    """,  # noqa: S608 - a constant of this module
    # A text key needs the complex form; newer servers would choose it by themselves, older ones refuse the plain one.
    layout="COMPLEX_KEY_RANGE_HASHED()",
    lifetime_seconds=(3000, 3600),
    value_range=("start_date", "end_date"),
)

# In the order of creation: a dictionary comes after its tables.
SCHEMA: tuple[SchemaObject, ...] = (SCHEMA_MIGRATIONS, EXCHANGE_RATE, EXCHANGE_RATE_DICT)
