"""The tables of 0.1.0: a new database gets them from `workers.results.database.schema`, and this number with them."""

revision = "0001"
down_revision = None


def upgrade() -> None:
    """There is nothing before these tables."""
