"""What each process has measured of a job, kept beyond its life in Redis."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE job_profiles (job_id TEXT NOT NULL, process TEXT NOT NULL, payload TEXT NOT NULL, "
        "PRIMARY KEY (job_id, process))"
    )
