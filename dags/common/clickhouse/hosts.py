"""The hosts of a ClickHouse cluster, and how to sign in on them."""

from dataclasses import dataclass, field

from pydantic import SecretStr

# Role of a host without the macro `role`, and of a host that did not answer.
DATA_ROLE = "data"
UNKNOWN_ROLE = "unknown"


@dataclass(frozen=True, order=True)
class Host:
    """One server of the cluster. Shards and replicas count from 1; hosts of role `data` hold the rows."""

    address: str
    port: int
    shard: int = 1
    replica: int = 1
    role: str = DATA_ROLE

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def may_hold_rows(self) -> bool:
        """Whether to query the host for rows: an unknown role counts, because leaving it out could hide a shard."""
        return self.role in (DATA_ROLE, UNKNOWN_ROLE)


@dataclass(frozen=True)
class Access:
    """Credentials and database for every host of the cluster."""

    user: str = "default"
    password: SecretStr = field(default=SecretStr(""), repr=False)
    database: str = "default"
    secure: bool = False
