"""Tries what failed among others once more by itself, and names what passed only so.

Exit code 0 when all passes now and nobody has to look at it: on a user's machine always, in CI only where
`tests/alone.txt` has each of these tests with a reason.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

LISTED = Path(__file__).with_name("alone.txt")
FAILED = Path(".pytest_cache/v/cache/lastfailed")


def listed(text: str) -> dict[str, str]:
    """The tests that may fail among others, with the reason of each."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return dict(line.split("\t", 1) for line in lines)


def verdict(code: int, alone: Iterable[str], reasons: Mapping[str, str], *, is_ci: bool) -> tuple[int, list[str]]:
    """The exit code of a second try that ended with `code`, and what to say of the tests that passed only `alone`."""
    said = [f"passed only alone: {name} ({reasons.get(name, 'no reason is listed')})" for name in sorted(alone)]
    is_unexplained = any(name not in reasons for name in alone)
    return (1 if code == 0 and is_ci and is_unexplained else code), said


def main() -> int:
    """Run the second try."""
    before = set(json.loads(FAILED.read_text())) if FAILED.exists() else set()
    if not before or not all("::" in name for name in before):
        # Something else than a test failed: it cannot be said which tests are left to try.
        sys.stderr.write("scripts/test: the run failed outside of tests: see above\n")
        return 1
    code = int(pytest.main(["--last-failed", "--last-failed-no-failures", "none"]))
    after = set(json.loads(FAILED.read_text())) if code else set()
    code, said = verdict(code, before - after, listed(LISTED.read_text()), is_ci=bool(os.environ.get("CI")))
    sys.stderr.writelines(f"scripts/test: {line}\n" for line in said)
    return code


if __name__ == "__main__":
    sys.exit(main())
