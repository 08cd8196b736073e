"""Write the measured lines of README.md, between its two marks, from the record of figures.

python docs/_generate/headlines.py
"""

import re
from pathlib import Path
from typing import Final

from docs._generate.figures import FIGURES, shown
from tests.benchmarks.record import Record, read

README: Final = Path(__file__).parents[2] / "README.md"
_BLOCK: Final = re.compile(r"(<!-- measured -->\n).*?(<!-- /measured -->)", re.DOTALL)
#: The lines, and which figure stands in each place: (test, case, title).
LINES: Final = """\
- kill -9 of everything in the middle of a job, then a start again: {ours_lost} of {of} destinations without a row;
  Celery as people write it loses {celery_lost}, dramatiq {dramatiq_lost}, taskiq {taskiq_lost}
- a list with 30 % repeated in other spellings: {ours_calls} calls a destination, there {celery_calls}; 64 equal prompts
  in each of two processes: {ours_equal} call, with the SDKs {openai_equal}
- a call costs {ours_cpu} times the CPU of bare aiohttp, with cache, single flight, limits and validation; by the openai
  SDK {openai_cpu}, litellm {litellm_cpu}, langchain {langchain_cpu}
- a destination whose answers are cached costs {cached_ms} ms in all processes, {cached_rate} a second for one worker
"""
_JOBS, _KILL = "test_jobs.py::test_a_job_beside_how_people_write_it", "test_jobs.py::test_what_a_kill"
_EQUAL, _CPU = "test_peers.py::test_equal_prompts", "test_peers.py::test_cpu_of_a_call"
_REPEATED: Final = "200 ms, 30 % repeated: LLM calls a destination"
_LOST: Final = "killed: destinations without a row"
_TOGETHER, _TIMES = "calls for 64 equal prompts in each of two processes", "CPU / bare aiohttp's"
PLACES: Final = {
    **{f"{one.lower()}_lost": (_KILL, one, _LOST) for one in ("ours", "Celery", "dramatiq", "taskiq")},
    **{f"{one.lower()}_calls": (_JOBS, one, _REPEATED) for one in ("ours", "Celery")},
    **{f"{one}_equal": (_EQUAL, one, _TOGETHER) for one in ("ours", "openai")},
    **{f"{one}_cpu": (_CPU, one, _TIMES) for one in ("ours", "openai", "litellm", "langchain")},
    "cached_ms": ("test_whole.py::test_whole_cached", "everything cached", "CPU a destination, all but the producer"),
    "cached_rate": ("test_whole.py::test_whole_cached", "everything cached", "destinations"),
}


def block(record: Record) -> str:
    """The lines; empty where one of their figures was not measured."""
    found: dict[str, str] = {}
    for place, (test, who, title) in PLACES.items():
        figures = [
            one
            for name, case in record.cases.items()
            if name.startswith(test)
            for one in case.figures
            if one.case.startswith(who) and one.title == title
        ]
        if not figures:
            return ""
        found[place] = shown(figures[0].median)
        if place == "ours_lost":
            found["of"] = figures[0].unit.removeprefix("of ")
    return LINES.format_map(found)


def written(text: str, record: Record) -> str:
    """The README with today's lines."""
    lines = block(record)
    return _BLOCK.sub(lambda at: f"{at[1]}{lines}{at[2]}", text) if lines else text


if __name__ == "__main__":
    README.write_text(written(README.read_text("utf-8"), read(FIGURES)))
