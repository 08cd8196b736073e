"""The first tables."""

from alembic import op

revision = "0001"
down_revision = None

_USAGE = """
  llm_calls INTEGER DEFAULT '0' NOT NULL, cache_hits INTEGER DEFAULT '0' NOT NULL,
  coalesced INTEGER DEFAULT '0' NOT NULL, prompt_tokens INTEGER DEFAULT '0' NOT NULL,
  completion_tokens INTEGER DEFAULT '0' NOT NULL, cost_usd FLOAT DEFAULT '0'"""
_KEY = "job_id TEXT NOT NULL, destination_id TEXT NOT NULL"
_OF_DESTINATION = """
  FOREIGN KEY(job_id, destination_id) REFERENCES destinations (job_id, destination_id) ON DELETE CASCADE"""

_STATEMENTS = (
    f"""CREATE TABLE jobs (
  job_id TEXT NOT NULL PRIMARY KEY, name TEXT NOT NULL, state TEXT DEFAULT 'queued' NOT NULL, total INTEGER,
  sealed INTEGER DEFAULT '0' NOT NULL, done INTEGER DEFAULT '0' NOT NULL, failed INTEGER DEFAULT '0' NOT NULL,
  partial INTEGER DEFAULT '0' NOT NULL, {_USAGE}, created_at FLOAT NOT NULL, started_at FLOAT, finished_at FLOAT,
  options TEXT, revision INTEGER DEFAULT '0' NOT NULL)""",
    f"""CREATE TABLE destinations (
  {_KEY}, name TEXT NOT NULL, country TEXT, region TEXT, lat FLOAT, lon FLOAT, extra TEXT DEFAULT '{{}}' NOT NULL,
  listed INTEGER NOT NULL, state TEXT DEFAULT 'queued' NOT NULL, partial INTEGER DEFAULT '0' NOT NULL,
  attempt INTEGER DEFAULT '-1' NOT NULL, {_USAGE}, created_at FLOAT NOT NULL, updated_at FLOAT NOT NULL,
  PRIMARY KEY (job_id, destination_id), FOREIGN KEY(job_id) REFERENCES jobs (job_id) ON DELETE CASCADE)""",
    "CREATE INDEX destinations_by_job ON destinations (job_id)",
    f"""CREATE TABLE attempts (
  {_KEY}, attempt INTEGER NOT NULL, worker TEXT NOT NULL, at FLOAT NOT NULL, outcome TEXT NOT NULL,
  elapsed_ms FLOAT NOT NULL, {_USAGE}, PRIMARY KEY (job_id, destination_id, attempt, worker, at), {_OF_DESTINATION}
) WITHOUT ROWID""",
    f"""CREATE TABLE profiles (
  {_KEY}, name TEXT NOT NULL, country TEXT, status TEXT NOT NULL, model TEXT NOT NULL, pipeline_version TEXT NOT NULL,
  quality FLOAT, payload TEXT NOT NULL, attempt INTEGER NOT NULL, {_USAGE}, elapsed_ms FLOAT NOT NULL,
  created_at FLOAT NOT NULL, updated_at FLOAT NOT NULL, PRIMARY KEY (job_id, destination_id), {_OF_DESTINATION})""",
    f"""CREATE TABLE themes (
  {_KEY}, rank INTEGER NOT NULL, category TEXT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL,
  confidence FLOAT, price_point TEXT, authenticity FLOAT, peak_months TEXT, avoid_months TEXT, traveler_types TEXT,
  PRIMARY KEY (job_id, destination_id, rank), {_OF_DESTINATION})""",
    f"""CREATE TABLE failures (
  {_KEY}, stage TEXT NOT NULL, error_class TEXT NOT NULL, message TEXT NOT NULL, attempts INTEGER NOT NULL,
  at FLOAT NOT NULL, PRIMARY KEY (job_id, destination_id), {_OF_DESTINATION})""",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
