"""What a container may use, read from made trees of cgroup files and from this machine."""

import os
from pathlib import Path

import pytest

from config.container import CONTAINER, ContainerLimits, container_limits, cpus_allowed
from config.settings import load

GIB = 1024**3
PRESSURE = "performance_optimization.memory_pressure_threshold_mb"
CACHE = "performance_optimization.max_memory_cache_mb"


def _tree(root: Path, groups: str, **files: str) -> Path:
    """A machine's files; `__` in a name stands for `/`, `_DOT_` for a dot."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu_DOT_max": "150000 100000\n", "memory_DOT_max": f"{GIB}\n"}, ContainerLimits(1.5, GIB)),
        ("0::/\n", {"cpu_DOT_max": "max 100000\n", "memory_DOT_max": "max\n"}, ContainerLimits()),
        # The machine's path, seen from inside: only the mount is there.
        ("0::/docker/abc\n", {"memory_DOT_max": f"{2 * GIB}\n"}, ContainerLimits(None, 2 * GIB)),
        # A limit of a group above counts when it is the smaller one.
        (
            "0::/pod/box\n",
            {"pod__memory_DOT_max": f"{GIB}\n", "pod__box__memory_DOT_max": "max\n", "pod__box__cpu_DOT_max": "5 10"},
            ContainerLimits(0.5, GIB),
        ),
        (
            "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n",
            {
                "memory__docker__abc__memory_DOT_limit_in_bytes": f"{GIB}\n",
                "memory__memory_DOT_limit_in_bytes": "9223372036854771712\n",
                "cpu,cpuacct__docker__abc__cpu_DOT_cfs_quota_us": "200000\n",
                "cpu,cpuacct__docker__abc__cpu_DOT_cfs_period_us": "100000\n",
            },
            ContainerLimits(2.0, GIB),
        ),
        ("2:cpu:/\n", {"cpu__cpu_DOT_cfs_quota_us": "-1\n", "cpu__cpu_DOT_cfs_period_us": "100000"}, ContainerLimits()),
        ("", {}, ContainerLimits()),
        ("nonsense\n0::\n0::/../..\n:::::\n", {"cpu_DOT_max": "what", "memory_DOT_max": "-3"}, ContainerLimits()),
    ],
)
def test_limits_are_read_from_cgroup_v2_and_v1(
    tmp_path: Path, groups: str, files: dict[str, str], expected: ContainerLimits
) -> None:
    assert container_limits(_tree(tmp_path, groups, **files)) == expected


def test_a_machine_without_cgroups_has_no_limits(tmp_path: Path) -> None:
    assert container_limits(tmp_path) == ContainerLimits()


def test_this_machine_is_read_without_an_error() -> None:
    limits = container_limits()
    assert limits.cpus is None or limits.cpus > 0
    assert limits.memory_bytes is None or limits.memory_bytes > 0
    assert 1 <= cpus_allowed(limits) <= (os.cpu_count() or 1)


def test_a_part_of_a_cpu_is_one_and_none_is_more_than_the_machine_has() -> None:
    assert cpus_allowed(ContainerLimits(cpus=0.3)) == 1
    assert cpus_allowed(ContainerLimits(cpus=10_000)) == cpus_allowed(ContainerLimits())


def test_a_small_container_makes_defaults_smaller_and_says_so() -> None:
    settings = load(env={}, machine=ContainerLimits(memory_bytes=GIB))
    limits = settings.performance_optimization
    assert (limits.memory_pressure_threshold_mb, limits.max_memory_cache_mb) == (614, 256)
    assert settings.origin(PRESSURE) == settings.origin(CACHE) == CONTAINER
    assert not settings.is_set(PRESSURE), "the user has not set it"


def test_a_large_container_leaves_the_defaults_and_what_is_set_is_never_replaced() -> None:
    settings = load(env={}, machine=ContainerLimits(memory_bytes=64 * GIB))
    assert settings.performance_optimization.memory_pressure_threshold_mb == 1024
    assert settings.origin(PRESSURE) == "default"
    env = {"THEMES_PERFORMANCE_OPTIMIZATION__MEMORY_PRESSURE_THRESHOLD_MB": "900"}
    chosen = load(env=env, machine=ContainerLimits(memory_bytes=GIB))
    assert chosen.performance_optimization.memory_pressure_threshold_mb == 900
    assert chosen.origin(PRESSURE).startswith("environment")


def test_a_tiny_container_leaves_values_within_their_bounds() -> None:
    limits = load(env={}, machine=ContainerLimits(memory_bytes=1)).performance_optimization
    assert (limits.memory_pressure_threshold_mb, limits.max_memory_cache_mb) == (64, 0)
