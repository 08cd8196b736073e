# ruff: noqa: S608  # constants of this module are all that is put into its SQL
"""Views for what users ask of the results, without knowledge of the tables.

The first make rows of what a row holds as bits or JSON; the others are made of them.

The newest profile of a destination stands for it where it has several, from several jobs. Made by `schema` and by the
migrations; a view that changes gets a migration of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from tasks.packed import STAGE_VALUES
from workers.results.database.tables import SEASON_SHIFTS

#: Holds for the profile of a destination that was made last, as in `newest_profiles`: one look into an index, where a
#: window would read all profiles for the one that is asked for.
_NEWEST: Final = """NOT EXISTS (
  SELECT 1 FROM profiles AS newer WHERE newer.destination_id = profiles.destination_id
    AND (newer.created_at, newer.job_id) > (profiles.created_at, profiles.job_id)
)"""
#: How a dialect goes through JSON: the items of a list, texts of one, the members of an object; and a value of an item.
_JSON: Final = {
    "sqlite": {
        "items": "json_each({0}) AS {1}",
        "texts": "json_each({0}) AS {1}",
        "members": "json_each({0}) AS {1}",
        "place": "{0}.key + 1",
        "text": "json_extract({0}.value, '$[{1}]')",
        "whole": "json_extract({0}.value, '$[{1}]')",
        "number": "json_extract({0}.value, '$[{1}]')",
        "json": "json_extract({0}.value, '$[{1}]')",
    },
    "postgresql": {
        "items": "json_array_elements({0}::json) WITH ORDINALITY AS {1} (value, place)",
        "texts": "json_array_elements_text({0}::json) WITH ORDINALITY AS {1} (value, place)",
        "members": "json_each({0}::json) AS {1}",
        "place": "{0}.place",
        "text": "({0}.value ->> {1})",
        "whole": "({0}.value ->> {1})::bigint",
        "number": "({0}.value ->> {1})::float8",
        "json": "({0}.value -> {1})::text",
    },
}
#: The values of `profiles.stages` and `profiles.missing`, in their order, and their kinds.
_STAGE: Final = {
    "stage": "text", "status": "text", "prompt_version": "text", "model": "text", "source": "text",
    "llm_calls": "whole", "cache_hits": "whole", "prompt_tokens": "whole", "completion_tokens": "whole",
    "cost_usd": "number", "elapsed_ms": "number", "reason": "text",
}  # fmt: skip
_MISSING: Final = {"stage": "text", "field": "text", "reason": "text", "themes": "json"}
#: A row for each bit of `profile_themes.seasons`.
_BITS: Final = ", ".join(
    f"({month}, '{season}', {1 << month - 1 + shift})"
    for season, shift in SEASON_SHIFTS.items()
    for month in range(1, 13)
)
#: The words are the same for SQLite and PostgreSQL.
_VIEWS: Final = {
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
  themes.price_point, themes.authenticity, themes.rank, themes.description, themes.theme_no, profiles.job_id,
  profiles.destination_id
FROM profile_themes AS themes JOIN profiles ON profiles.profile_no = themes.profile_no
WHERE {_NEWEST}""",
    # Where to go when, and for what: WHERE month = 5 AND season = 'peak'.
    "destinations_by_month": f"""
SELECT bits.column1 AS month, bits.column2 AS season, profiles.name AS destination, profiles.country,
  count(*) AS themes, avg(themes.confidence) AS confidence, profiles.job_id, profiles.destination_id
FROM (VALUES {_BITS}) AS bits
JOIN profile_themes AS themes ON (themes.seasons & bits.column3) <> 0
JOIN profiles ON profiles.profile_no = themes.profile_no
WHERE {_NEWEST}
GROUP BY bits.column1, bits.column2, profiles.job_id, profiles.destination_id, profiles.name, profiles.country""",
    # What a country is known for: WHERE country = 'Japan' ORDER BY place.
    "top_themes_by_country": f"""
SELECT country, category, theme, destinations, confidence,
  row_number() OVER (PARTITION BY country ORDER BY destinations DESC, confidence DESC, theme) AS place
FROM (
  SELECT profiles.country, themes.category, themes.name AS theme,
    count(DISTINCT profiles.destination_id) AS destinations, avg(themes.confidence) AS confidence
  FROM profile_themes AS themes
  JOIN profiles ON profiles.profile_no = themes.profile_no
  WHERE {_NEWEST}
  GROUP BY profiles.country, themes.category, themes.name
) AS counted""",
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
}


def views(dialect: str) -> dict[str, str]:
    """Name -> SELECT, in the order in which they are made."""
    words = _JSON[dialect]

    def json(kind: str, *of: object) -> str:
        return words[kind].format(*of)

    def values(of: str, kinds: Mapping[str, str], order: Sequence[str]) -> str:
        return ", ".join(f"{json(kind, of, order.index(name))} AS {name}" for name, kind in kinds.items())

    return {
        # One row a theme.
        "themes": """
SELECT t.theme_no, p.job_id, p.destination_id, t.rank, t.category, t.name, t.description, t.confidence, t.price_point,
  t.authenticity
FROM profile_themes AS t JOIN profiles AS p ON p.profile_no = t.profile_no""",
        # The best months of a theme, and those to avoid.
        "theme_months": f"""
SELECT t.theme_no, bits.column1 AS month, bits.column2 AS season
FROM (VALUES {_BITS}) AS bits JOIN profile_themes AS t ON (t.seasons & bits.column3) <> 0""",
        # Whom a theme suits.
        "theme_travelers": f"""
SELECT t.theme_no, kind.value AS traveler_type
FROM profile_themes AS t, {json("texts", "t.traveler_types", "kind")}""",
        # What is within a theme: `sub`, or `nano`, finer still.
        "theme_subthemes": f"""
SELECT t.theme_no, levels.key AS level, {json("place", "names")} AS position, names.value AS name
FROM profile_themes AS t, {json("members", "t.subthemes", "levels")}, {json("texts", "levels.value", "names")}""",
        # How each answer of a profile was made.
        "stages": f"""
SELECT p.profile_no, {values("made", _STAGE, STAGE_VALUES)}
FROM profiles AS p, {json("items", "p.stages", "made")}""",
        # What could not be had, and why; `themes` [] means the whole profile.
        "missing": f"""
SELECT p.profile_no, {json("place", "lack")} AS position, {values("lack", _MISSING, [*_MISSING])}
FROM profiles AS p, {json("items", "p.missing", "lack")}
WHERE p.missing IS NOT NULL""",
        **_VIEWS,
        # What profiles lack, and why: by class of error, with one of the reasons; messages differ in numbers alone.
        "gaps": f"""
SELECT job_id, stage, field, error_class, min(reason) AS reason, count(*) AS profiles
FROM (
  SELECT job_id, stage, field, reason,
    CASE WHEN substr(message, 1, 2) = ': ' THEN substr(reason, 1, length(reason) - length(message))
      ELSE reason END AS error_class
  FROM (
    SELECT p.job_id, {json("text", "lack", 0)} AS stage, {json("text", "lack", 1)} AS field,
      {json("text", "lack", 2)} AS reason,
      ltrim({json("text", "lack", 2)}, 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ') AS message
    FROM profiles AS p, {json("items", "p.missing", "lack")} WHERE p.missing IS NOT NULL
  ) AS cut
) AS classed
GROUP BY job_id, stage, field, error_class""",
    }
