"""The tables' birth and their changes from version to version (alembic), in the writer's transaction.

Of two processes that start at once the second waits and finds the work done. A new database gets today's tables
and the number of today's version; an older one gets what happened since, one migration after the other, or nothing.
"""

import time
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, MetaData, event, inspect
from sqlalchemy.ext.asyncio import AsyncConnection

from tasks.errors import DatabaseError
from workers.results.database.tables import SCHEMA_VERSION, metadata
from workers.results.database.views import views

#: The migrations, one file a version.
MIGRATIONS: Final = Path(__file__).parent / "migrations"
#: Where alembic keeps the version.
_VERSION_TABLE: Final = "alembic_version"


@event.listens_for(metadata, "after_create")
def _finish(_: MetaData, connection: Connection, **__: object) -> None:
    if connection.dialect.name == "postgresql":
        # The order in which destinations came, as SQLite's own rowid has it.
        connection.exec_driver_sql("ALTER TABLE destinations ADD COLUMN rowid BIGINT GENERATED ALWAYS AS IDENTITY")
        connection.exec_driver_sql("DROP INDEX destinations_by_job")
        connection.exec_driver_sql("CREATE INDEX destinations_by_job ON destinations (job_id, rowid)")
    # The few that lack something. As a part of its table SQLAlchemy would load both dialects for it.
    connection.exec_driver_sql("CREATE INDEX profiles_by_gap ON profiles (job_id) WHERE missing IS NOT NULL")
    since = int(time.time() * 1_000_000)
    connection.exec_driver_sql(f"INSERT INTO counters (name, value) VALUES ('since', {since})")  # noqa: S608 - a number
    for name, query in views(connection.dialect.name).items():
        connection.exec_driver_sql(f"CREATE VIEW {name} AS {query}")


async def bring_up_to_date(connection: AsyncConnection, place: str) -> None:
    """Create the tables in the writer's transaction, or bring older ones up to date.

    Raises:
        DatabaseError: a newer version's database, or another application's.
    """
    version = await schema_version(connection, place)
    if version == 0:
        await connection.run_sync(_create)
    elif version < SCHEMA_VERSION:
        await connection.run_sync(_migrate)


async def schema_version(connection: AsyncConnection, place: str) -> int:
    """The version of the database's tables; 0 for an empty one.

    Raises:
        DatabaseError: a newer version's database, or another application's.
    """
    version, others = await connection.run_sync(_found)
    if version > SCHEMA_VERSION:
        raise DatabaseError(
            f"{place}: made by a newer version of themes (schema {version}, this one knows {SCHEMA_VERSION}); "
            "install that version, or set database.url to another"
        )
    if version == 0 and others:
        raise DatabaseError(f"{place}: holds another application's tables; set database.url to one of its own")
    return version


def _found(connection: Connection) -> tuple[int, bool]:
    """The version, and whether there are tables at all."""
    names = inspect(connection).get_table_names()
    if _VERSION_TABLE not in names:
        return 0, bool(names)
    found = connection.exec_driver_sql(f"SELECT version_num FROM {_VERSION_TABLE}").scalar()  # noqa: S608 - a constant
    return int(found or 0), True


def revision(version: int) -> str:
    return f"{version:04d}"


def _create(connection: Connection) -> None:
    # There are no tables: none is looked for.
    metadata.create_all(connection, checkfirst=False)
    connection.exec_driver_sql(
        f"CREATE TABLE {_VERSION_TABLE} (version_num VARCHAR(32) NOT NULL, "
        "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    )
    connection.exec_driver_sql(f"INSERT INTO {_VERSION_TABLE} VALUES ('{revision(SCHEMA_VERSION)}')")  # noqa: S608 - a number


def _migrate(connection: Connection) -> None:
    # Late: a database that is up to date needs no alembic.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    command.upgrade(config, "head")
