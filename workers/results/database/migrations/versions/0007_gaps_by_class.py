"""The view `gaps` groups by class of error: by full texts, with numbers in them, it told nothing."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute("DROP VIEW gaps")
    op.execute("""CREATE VIEW gaps AS
SELECT job_id, stage, field, error_class, min(reason) AS reason, count(*) AS profiles
FROM (
  SELECT job_id, stage, field, reason,
    CASE WHEN substr(message, 1, 2) = ': ' THEN substr(reason, 1, length(reason) - length(message))
      ELSE reason END AS error_class
  FROM (
    SELECT profiles.job_id, missing.stage, missing.field, missing.reason,
      ltrim(missing.reason, 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ') AS message
    FROM missing JOIN profiles ON profiles.profile_no = missing.profile_no
  ) AS cut
) AS classed
GROUP BY job_id, stage, field, error_class""")
