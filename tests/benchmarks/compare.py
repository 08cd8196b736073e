"""Two revisions beside each other: `scripts/bench --compare REF [-k CASES]`; REF `last` is the last tag.

Each revision measures its own cases in an environment of its own, this tree and the other one in turns. Figures of the
same case and title are compared turn by turn. Nothing here fails because a machine is slow or noisy: it is said.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.figures import repeats
from tests.benchmarks.noise import Others, allowed
from tests.benchmarks.record import ROOT

#: What a revision costs as a whole.
CASES: Final = "whole_cached or whole_uncached"
#: What a revision needs to be compared.
RECORD: Final = "tests/benchmarks/record.py"
#: (case, title, unit) -> a value a turn.
Values = dict[tuple[str, str, str], list[float]]


class NothingToCompareError(Exception):
    """There is no other revision, or it has none of these cases."""


def revision(wanted: str) -> str:
    """The commit of a name; of `last` that of the last tag.

    Where there is no tag it is the newest one of a day ago, or the first one that keeps a record of what it measures.
    """
    if wanted != "last":
        return _git("rev-parse", "--verify", f"{wanted}^{{commit}}")
    if tag := _git("describe", "--tags", "--abbrev=0", "HEAD^"):
        return _git("rev-parse", f"{tag}^{{commit}}")
    day_ago = _git("rev-list", "-1", "--before=1.day", "HEAD")
    if day_ago and _git("ls-tree", day_ago, "--", RECORD):
        return day_ago
    return _git("log", "--diff-filter=A", "--format=%H", "-1", "--", RECORD)


def _git(*arguments: str) -> str:
    """What git says; nothing where it knows no such thing."""
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A tree of the commit, with an environment of its own."""
    with tempfile.TemporaryDirectory(prefix="themes-compare-") as folder:
        tree = Path(folder) / "other"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", tree, commit], check=True)
        try:
            command = [tree / "scripts" / "setup", "--dev"]
            done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NothingToCompareError(f"its environment could not be made:\n{done.stderr[-3_000:]}")
            yield tree
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)


def measured(tree: Path, cases: str) -> dict[tuple[str, str, str], float]:
    """The medians that a tree's own benchmarks tell, once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        command = [str(tree / ".venv" / "bin" / "python"), "-m", "pytest", "-q", "-m", "benchmark", "--timeout=900"]
        env = os.environ | {"BENCH_REPEATS": "1", "BENCH_NOISE": "100"}
        done = subprocess.run(
            [*command, "tests/benchmarks", "-k", cases, "--json", str(path)],
            cwd=tree,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        if not path.exists() or done.returncode:
            words = f"{done.stdout[-3_000:]}{done.stderr[-3_000:]}"
            raise NothingToCompareError(f"{tree.name} could not measure {cases!r}:\n{words}")
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return {key: value for case in record["cases"].values() for key, value in map(_figure, case["figures"])}


def _figure(told: dict[str, Any] | list[Any]) -> tuple[tuple[str, str, str], float]:
    """A figure as this revision writes it, or as those before it did."""
    case, title, unit, median = told[:4] if isinstance(told, list) else list(told.values())[:4]
    return (case, title, unit), float(median)


def in_turns(here: Path, other: Path, cases: str, turns: int) -> tuple[Values, Values]:
    """What both measured; who begins changes each turn."""
    found: dict[Path, Values] = {here: defaultdict(list), other: defaultdict(list)}
    for turn in range(turns):
        for tree in (here, other) if turn % 2 else (other, here):
            print(f"turn {turn + 1} of {turns}: {'this tree' if tree == here else 'the other'}", file=sys.stderr)
            for key, value in measured(tree, cases).items():
                found[tree][key].append(value)
    return found[here], found[other]


def table(ours: Values, theirs: Values, *, every: bool) -> Iterator[str]:
    """A row a figure that both have: medians, and the ratio turn by turn with its ends."""
    yield "| | the other | this tree | this tree / the other |\n|---|---|---|---|"
    for key, values in ours.items():
        case, title, unit = key
        before = theirs.get(key, [])
        if len(before) != len(values) or not (every or title.startswith("CPU")) or not all(before):
            continue
        ratios = [one / other for one, other in zip(values, before, strict=True)]
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
        medians = f"{statistics.median(before):.3g} {unit} | {statistics.median(values):.3g} {unit}"
        yield f"| {case}: {title} | {medians} | {statistics.median(ratios):.2f}{spread} |"


def main(arguments: Sequence[str]) -> None:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench --compare", description=__doc__)
    parser.add_argument("ref", help="a revision; `last`: the last tag")
    parser.add_argument("-k", default=CASES, metavar="CASES", help=f"which cases, as pytest names them ({CASES})")
    parser.add_argument("--all", action="store_true", help="every figure, not CPU alone")
    asked = parser.parse_args(arguments)
    commit = revision(asked.ref)
    if not commit:
        print(f"{asked.ref}: no such revision in this clone: there is nothing to compare with")
        raise SystemExit(0 if asked.ref == "last" else 2)
    print(f"this tree beside {_git('log', '-1', '--format=%h of %cs: %s', commit)}")
    others = Others()
    try:
        with checked_out(commit) as tree:
            ours, theirs = in_turns(ROOT, tree, asked.k, repeats())
    except NothingToCompareError as error:
        print(error)
        raise SystemExit(0 if asked.ref == "last" else 1) from None
    print("\n".join(table(ours, theirs, every=asked.all)))
    if (share := others.share()) > allowed():
        print(f"The machine was noisy: others used {share:.2f} of a core. Ratios of CPU hold better than times do.")


if __name__ == "__main__":
    main(sys.argv[1:])
