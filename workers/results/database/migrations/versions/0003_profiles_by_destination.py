"""An index, for `enqueue --only-missing`."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("CREATE INDEX profiles_by_destination ON profiles (destination_id)")
