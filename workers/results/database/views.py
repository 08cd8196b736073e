"""Views for what users ask of the results, without knowledge of the tables.

The newest profile of a destination stands for it where it has several, from several jobs. Made by `schema` and by the
migrations; a view that changes gets a migration of its own.
"""

from typing import Final

#: Holds for the profile of a destination that was made last, as in `newest_profiles`: one look into an index, where a
#: window would read all profiles for the one that is asked for.
_NEWEST: Final = """NOT EXISTS (
  SELECT 1 FROM profiles AS newer WHERE newer.destination_id = profiles.destination_id
    AND (newer.created_at, newer.job_id) > (profiles.created_at, profiles.job_id)
)"""
#: Name -> SELECT; the words are the same for SQLite and PostgreSQL.
VIEWS: Final = {
    # One row a destination: the profile that was made last, over all jobs.
    "newest_profiles": """
SELECT * FROM (
  SELECT profiles.*,
    row_number() OVER (PARTITION BY destination_id ORDER BY created_at DESC, job_id DESC) AS newest
  FROM profiles
) AS ranked WHERE newest = 1""",
    # Which destinations have a theme: WHERE theme = 'Street food', WHERE category = 'food' AND country = 'Japan'.
    "destinations_by_theme": f"""
SELECT themes.category, themes.name AS theme, profiles.name AS destination, profiles.country, themes.confidence,
  themes.price_point, themes.authenticity, themes.rank, themes.description, themes.theme_no, themes.job_id,
  themes.destination_id
FROM themes JOIN profiles ON profiles.job_id = themes.job_id AND profiles.destination_id = themes.destination_id
WHERE {_NEWEST}""",  # noqa: S608 - a constant
    # Where to go when, and for what: WHERE month = 5 AND season = 'peak'.
    "destinations_by_month": f"""
SELECT theme_months.month, theme_months.season, profiles.name AS destination, profiles.country,
  count(*) AS themes, avg(themes.confidence) AS confidence, themes.job_id, themes.destination_id
FROM theme_months
JOIN themes ON themes.theme_no = theme_months.theme_no
JOIN profiles ON profiles.job_id = themes.job_id AND profiles.destination_id = themes.destination_id
WHERE {_NEWEST}
GROUP BY theme_months.month, theme_months.season, themes.job_id, themes.destination_id, profiles.name,
  profiles.country""",  # noqa: S608 - a constant
    # What a country is known for: WHERE country = 'Japan' ORDER BY place.
    "top_themes_by_country": f"""
SELECT country, category, theme, destinations, confidence,
  row_number() OVER (PARTITION BY country ORDER BY destinations DESC, confidence DESC, theme) AS place
FROM (
  SELECT profiles.country, themes.category, themes.name AS theme,
    count(DISTINCT profiles.destination_id) AS destinations, avg(themes.confidence) AS confidence
  FROM themes
  JOIN profiles ON profiles.job_id = themes.job_id AND profiles.destination_id = themes.destination_id
  WHERE {_NEWEST}
  GROUP BY profiles.country, themes.category, themes.name
) AS counted""",  # noqa: S608 - a constant
    # How a profile was made: WHERE destination = 'Kyoto'.
    "provenance": """
SELECT profiles.name AS destination, profiles.country, stages.stage, stages.status, stages.source, stages.model,
  stages.prompt_version, stages.llm_calls, stages.cache_hits, stages.prompt_tokens, stages.completion_tokens,
  stages.cost_usd, stages.elapsed_ms, stages.reason, profiles.job_id, profiles.destination_id
FROM stages JOIN profiles ON profiles.profile_no = stages.profile_no""",
    # Where a job's money and time went.
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
    # What profiles lack, and why: by class of error, with one of the reasons; messages differ in numbers alone.
    "gaps": """
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
GROUP BY job_id, stage, field, error_class""",
}
