"""Seasons, traveller types, sub-themes, stages and gaps as rows; dead letters; views.

Profiles and themes get numbers, and are made anew for it; their new rows come out of the stored profiles.
"""

from alembic import op
from sqlalchemy import text

revision = "0004"
down_revision = "0003"

_TABLES = (
    """CREATE TABLE profiles (
  profile_no INTEGER NOT NULL,
  job_id TEXT NOT NULL,
  destination_id TEXT NOT NULL,
  name TEXT NOT NULL,
  country TEXT,
  status TEXT NOT NULL,
  model TEXT NOT NULL,
  pipeline_version TEXT NOT NULL,
  quality FLOAT,
  payload TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  llm_calls INTEGER DEFAULT '0' NOT NULL,
  cache_hits INTEGER DEFAULT '0' NOT NULL,
  coalesced INTEGER DEFAULT '0' NOT NULL,
  prompt_tokens INTEGER DEFAULT '0' NOT NULL,
  completion_tokens INTEGER DEFAULT '0' NOT NULL,
  estimated_calls INTEGER DEFAULT '0' NOT NULL,
  memory_hits INTEGER DEFAULT '0' NOT NULL,
  cache_misses INTEGER DEFAULT '0' NOT NULL,
  cache_stores INTEGER DEFAULT '0' NOT NULL,
  cache_corrupt INTEGER DEFAULT '0' NOT NULL,
  bytes_raw INTEGER DEFAULT '0' NOT NULL,
  bytes_stored INTEGER DEFAULT '0' NOT NULL,
  saved_prompt_tokens INTEGER DEFAULT '0' NOT NULL,
  saved_completion_tokens INTEGER DEFAULT '0' NOT NULL,
  saved_usd FLOAT DEFAULT '0',
  cost_usd FLOAT DEFAULT '0',
  elapsed_ms FLOAT NOT NULL,
  created_at FLOAT NOT NULL,
  updated_at FLOAT NOT NULL,
  PRIMARY KEY (profile_no),
  UNIQUE (job_id, destination_id),
  FOREIGN KEY(job_id, destination_id) REFERENCES destinations (job_id, destination_id) ON DELETE CASCADE
)""",
    "CREATE INDEX profiles_by_country ON profiles (country)",
    "CREATE INDEX profiles_by_destination ON profiles (destination_id)",
    """CREATE TABLE themes (
  theme_no INTEGER NOT NULL,
  job_id TEXT NOT NULL,
  destination_id TEXT NOT NULL,
  rank INTEGER NOT NULL,
  category TEXT NOT NULL,
  name TEXT NOT NULL,
  description TEXT NOT NULL,
  confidence FLOAT,
  price_point TEXT,
  authenticity FLOAT,
  rationale TEXT,
  PRIMARY KEY (theme_no),
  UNIQUE (job_id, destination_id, rank),
  FOREIGN KEY(job_id, destination_id) REFERENCES profiles (job_id, destination_id) ON DELETE CASCADE
)""",
    "CREATE INDEX themes_by_name ON themes (name)",
    """CREATE TABLE theme_months (
  theme_no INTEGER NOT NULL,
  month INTEGER NOT NULL,
  season TEXT NOT NULL,
  PRIMARY KEY (theme_no, month, season),
  FOREIGN KEY(theme_no) REFERENCES themes (theme_no) ON DELETE CASCADE
)
 WITHOUT ROWID""",
    "CREATE INDEX theme_months_by_month ON theme_months (month, season)",
    """CREATE TABLE theme_travelers (
  theme_no INTEGER NOT NULL,
  traveler_type TEXT NOT NULL,
  PRIMARY KEY (theme_no, traveler_type),
  FOREIGN KEY(theme_no) REFERENCES themes (theme_no) ON DELETE CASCADE
)
 WITHOUT ROWID""",
    "CREATE INDEX theme_travelers_by_type ON theme_travelers (traveler_type)",
    """CREATE TABLE theme_subthemes (
  theme_no INTEGER NOT NULL,
  level TEXT NOT NULL,
  position INTEGER NOT NULL,
  name TEXT NOT NULL,
  PRIMARY KEY (theme_no, level, position),
  FOREIGN KEY(theme_no) REFERENCES themes (theme_no) ON DELETE CASCADE
)
 WITHOUT ROWID""",
    """CREATE TABLE stages (
  profile_no INTEGER NOT NULL,
  stage TEXT NOT NULL,
  status TEXT NOT NULL,
  prompt_version TEXT NOT NULL,
  model TEXT,
  source TEXT NOT NULL,
  llm_calls INTEGER NOT NULL,
  cache_hits INTEGER NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  cost_usd FLOAT,
  elapsed_ms FLOAT NOT NULL,
  reason TEXT,
  PRIMARY KEY (profile_no, stage),
  FOREIGN KEY(profile_no) REFERENCES profiles (profile_no) ON DELETE CASCADE
)
 WITHOUT ROWID""",
    """CREATE TABLE missing (
  profile_no INTEGER NOT NULL,
  position INTEGER NOT NULL,
  stage TEXT NOT NULL,
  field TEXT NOT NULL,
  reason TEXT NOT NULL,
  themes TEXT NOT NULL,
  PRIMARY KEY (profile_no, position),
  FOREIGN KEY(profile_no) REFERENCES profiles (profile_no) ON DELETE CASCADE
)
 WITHOUT ROWID""",
    """CREATE TABLE dead_letters (
  entry_id TEXT NOT NULL,
  job_id TEXT,
  destination_id TEXT,
  reason TEXT NOT NULL,
  entry BLOB NOT NULL,
  at FLOAT NOT NULL,
  PRIMARY KEY (entry_id)
)""",
)
_VIEWS = {
    "newest_profiles": """
SELECT * FROM (
  SELECT profiles.*,
    row_number() OVER (PARTITION BY destination_id ORDER BY created_at DESC, job_id DESC) AS newest
  FROM profiles
) AS ranked WHERE newest = 1""",
    "destinations_by_theme": """
SELECT themes.category, themes.name AS theme, profiles.name AS destination, profiles.country, themes.confidence,
  themes.price_point, themes.authenticity, themes.rank, themes.description, themes.theme_no, themes.job_id,
  themes.destination_id
FROM themes JOIN profiles ON profiles.job_id = themes.job_id AND profiles.destination_id = themes.destination_id""",
    "destinations_by_month": """
SELECT theme_months.month, theme_months.season, profiles.name AS destination, profiles.country,
  count(*) AS themes, avg(themes.confidence) AS confidence, themes.job_id, themes.destination_id
FROM theme_months
JOIN themes ON themes.theme_no = theme_months.theme_no
JOIN profiles ON profiles.job_id = themes.job_id AND profiles.destination_id = themes.destination_id
GROUP BY theme_months.month, theme_months.season, themes.job_id, themes.destination_id, profiles.name,
  profiles.country""",
    "top_themes_by_country": """
SELECT country, category, theme, destinations, confidence,
  row_number() OVER (PARTITION BY country ORDER BY destinations DESC, confidence DESC, theme) AS place
FROM (
  SELECT profiles.country, themes.category, themes.name AS theme,
    count(DISTINCT profiles.destination_id) AS destinations, avg(themes.confidence) AS confidence
  FROM themes
  JOIN profiles ON profiles.job_id = themes.job_id AND profiles.destination_id = themes.destination_id
  GROUP BY profiles.country, themes.category, themes.name
) AS counted""",
    "provenance": """
SELECT profiles.name AS destination, profiles.country, stages.stage, stages.status, stages.source, stages.model,
  stages.prompt_version, stages.llm_calls, stages.cache_hits, stages.prompt_tokens, stages.completion_tokens,
  stages.cost_usd, stages.elapsed_ms, stages.reason, profiles.job_id, profiles.destination_id
FROM stages JOIN profiles ON profiles.profile_no = stages.profile_no""",
    "stage_costs": """
SELECT profiles.job_id, stages.stage, count(*) AS profiles,
  sum(CASE WHEN stages.status = 'ok' THEN 0 ELSE 1 END) AS not_ok,
  sum(CASE WHEN stages.source = 'called' THEN 1 ELSE 0 END) AS called,
  sum(CASE WHEN stages.source = 'cached' THEN 1 ELSE 0 END) AS cached,
  sum(stages.llm_calls) AS llm_calls, sum(stages.prompt_tokens) AS prompt_tokens,
  sum(stages.completion_tokens) AS completion_tokens, sum(stages.cost_usd) AS cost_usd,
  avg(stages.elapsed_ms) AS mean_ms
FROM stages JOIN profiles ON profiles.profile_no = stages.profile_no
GROUP BY profiles.job_id, stages.stage""",
    "gaps": """
SELECT profiles.job_id, missing.stage, missing.field, missing.reason, count(*) AS profiles
FROM missing JOIN profiles ON profiles.profile_no = missing.profile_no
GROUP BY profiles.job_id, missing.stage, missing.field, missing.reason""",
}

_KEPT = [
    "job_id",
    "destination_id",
    "name",
    "country",
    "status",
    "model",
    "pipeline_version",
    "quality",
    "payload",
    "attempt",
    "llm_calls",
    "cache_hits",
    "coalesced",
    "prompt_tokens",
    "completion_tokens",
    "estimated_calls",
    "memory_hits",
    "cache_misses",
    "cache_stores",
    "cache_corrupt",
    "bytes_raw",
    "bytes_stored",
    "saved_prompt_tokens",
    "saved_completion_tokens",
    "saved_usd",
    "cost_usd",
    "elapsed_ms",
    "created_at",
    "updated_at",
]
#: `t` is one theme of a profile's payload: its key is its place, from 0.
_OF_THEMES = """FROM themes
  JOIN profiles ON profiles.job_id = themes.job_id AND profiles.destination_id = themes.destination_id
  JOIN json_each(profiles.payload, '$.themes') AS t ON t.key = themes.rank - 1"""
_MONTHS = """CASE m.value WHEN 'January' THEN 1 WHEN 'February' THEN 2 WHEN 'March' THEN 3 WHEN 'April' THEN 4
  WHEN 'May' THEN 5 WHEN 'June' THEN 6 WHEN 'July' THEN 7 WHEN 'August' THEN 8 WHEN 'September' THEN 9
  WHEN 'October' THEN 10 WHEN 'November' THEN 11 WHEN 'December' THEN 12 END"""


def upgrade() -> None:
    op.execute("ALTER TABLE themes RENAME TO old_themes")
    op.execute("ALTER TABLE profiles RENAME TO old_profiles")
    op.execute("DROP INDEX profiles_by_destination")
    for statement in _TABLES:
        op.execute(text(statement))
    columns = ", ".join(_KEPT)
    op.execute(text(f"INSERT INTO profiles (profile_no, {columns}) SELECT rowid, {columns} FROM old_profiles"))
    op.execute(
        text("""INSERT INTO themes (theme_no, job_id, destination_id, rank, category, name, description,
  confidence, price_point, authenticity, rationale)
SELECT o.rowid, o.job_id, o.destination_id, o.rank, o.category, o.name, o.description, o.confidence, o.price_point,
  o.authenticity, json_extract(p.payload, '$.themes[' || (o.rank - 1) || '].rationale')
FROM old_themes AS o
JOIN old_profiles AS p ON p.job_id = o.job_id AND p.destination_id = o.destination_id""")
    )
    for season in ("peak", "avoid"):
        op.execute(
            text(f"""INSERT OR IGNORE INTO theme_months (theme_no, month, season)
SELECT themes.theme_no, {_MONTHS} AS month, '{season}' {_OF_THEMES}
  JOIN json_each(t.value, '$.seasonality.{season}') AS m WHERE month IS NOT NULL""")
        )
    op.execute(
        text(f"""INSERT OR IGNORE INTO theme_travelers (theme_no, traveler_type)
SELECT themes.theme_no, m.value {_OF_THEMES} JOIN json_each(t.value, '$.traveler_types') AS m
WHERE m.value IS NOT NULL""")
    )
    for level in ("sub", "nano"):
        op.execute(
            text(f"""INSERT INTO theme_subthemes (theme_no, level, position, name)
SELECT themes.theme_no, '{level}', m.key + 1, m.value {_OF_THEMES} JOIN json_each(t.value, '$.{level}_themes') AS m
WHERE m.value IS NOT NULL""")
        )
    op.execute(
        text("""INSERT OR REPLACE INTO stages (profile_no, stage, status, prompt_version, model, source,
  llm_calls, cache_hits, prompt_tokens, completion_tokens, cost_usd, elapsed_ms, reason)
SELECT profiles.profile_no, json_extract(s.value, '$.stage'), json_extract(s.value, '$.status'), json_extract(s.value, '$.prompt_version'),
  json_extract(s.value, '$.model'), json_extract(s.value, '$.source'), coalesce(json_extract(s.value, '$.usage.llm_calls'), 0),
  coalesce(json_extract(s.value, '$.usage.cache_hits'), 0), coalesce(json_extract(s.value, '$.usage.prompt_tokens'), 0),
  coalesce(json_extract(s.value, '$.usage.completion_tokens'), 0),
  CASE WHEN json_type(s.value, '$.usage.cost_usd') = 'null' THEN NULL
    ELSE coalesce(json_extract(s.value, '$.usage.cost_usd'), 0.0) END,
  json_extract(s.value, '$.elapsed_ms'), json_extract(s.value, '$.reason')
FROM profiles JOIN json_each(profiles.payload, '$.stages') AS s""")
    )
    op.execute(
        text("""INSERT INTO missing (profile_no, position, stage, field, reason, themes)
SELECT profiles.profile_no, m.key + 1, json_extract(m.value, '$.stage'), json_extract(m.value, '$.field'), json_extract(m.value, '$.reason'),
  coalesce(json_extract(m.value, '$.themes'), '[]')
FROM profiles JOIN json_each(profiles.payload, '$.missing') AS m""")
    )
    op.execute("DROP TABLE old_themes")
    op.execute("DROP TABLE old_profiles")
    for name, query in _VIEWS.items():
        op.execute(text(f"CREATE VIEW {name} AS {query}"))
