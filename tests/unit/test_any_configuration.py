"""Whatever is set, wherever: settings, or errors with a place. Never a traceback, never two lines, never a secret."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import settings as each
from hypothesis import strategies as st

from config.errors import ConfigError
from config.legacy import KNOWN, SECTION, TODAY
from config.settings import KNOWN_VARIABLES, known_keys, load, problems
from config.values import Secret
from scripts.config import public

SECRET = "hunter2"
#: Where an error may say that it is.
PLACE = re.compile(
    r"any\.yaml(:\d+)?|environments/own\.yaml(:\d+)?|environment [A-Z][A-Z_0-9]*|command line|\(default\)"
)
_words = st.sampled_from(
    [
        "", "0", "1", "2", "5", "16", "100", "1000", "-1", "1.5", "0.01", "1e3", "1e999", "nan", ".inf", "true", "no",
        "NO", "12:30", "null", "~", "2026-01-01", "0x10", "1_000", "9" * 400, "text", "zstd", "auto", "''", '"7"',
        "[1, 2]", "{a: 1}", "{a: {base_url: http://x/v1}}", "{m: {input_usd: 1, output_usd: 2}}", "&a 1", "*a",
        "!!int 3", "!!python/object:os.system 1", "|", ">-", "'", "[", "{", "# only a remark", "redis://:hunter2@h/1",
        "\u2028", "\x00", "é", "\ud7ff", "\U0001f600", "\t1", "- 1", "? a", "@x", "%x", "`x",
    ]
)  # fmt: skip
_names = st.sampled_from(sorted({*known_keys(), *KNOWN, "work.lease_second", "wrok.x", "performance.x", "state_dir.x"}))
_breaks = st.sampled_from(["\n", "\r\n", "\n\n", "\r", "\n\ufeff", "\n\t"])


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A settings file with true, old and wrong names and any values, not always well-formed."""
    blocks: dict[str, list[str]] = {}
    for name in draw(st.lists(_names, max_size=8)):
        *above, leaf = name.split(".")
        blocks.setdefault(".".join(above), []).append(f"{leaf}: {draw(_words)}")
    text = ""
    for path, lines in blocks.items():
        newline = draw(_breaks)
        depth = 0
        for part in path.split(".") if path else []:
            text += f"{'  ' * depth}{part}:{newline}"
            depth += 1
        text += "".join(f"{'  ' * depth}{line}{newline}" for line in lines)
    mark = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    return mark + text.encode()


_environments = st.dictionaries(
    st.sampled_from(
        [f"THEMES_{key.upper().replace('.', '__')}" for key in known_keys()]
        + [*KNOWN_VARIABLES, "THEMES_PERFORMANCE__CHUNK_SIZE", "THEMES_", "THEMES___", "THEMES_WORK__LEASE_SECOND"]
    ),
    _words | st.text(max_size=10),
    max_size=4,
)
_overlays = st.sampled_from(["", "own", "production", "development", "conservative", "ow", "../any", "\x00"])


@each(deadline=None, max_examples=120)
@given(file=files(), overlay_file=files(), overlay=_overlays, env=_environments)
@example(file=b"streaming:\n  chunk_size: [" + b"[" * 5000, overlay_file=b"", overlay="", env={})
@example(file=b"\x00\x01\xff", overlay_file=b"\xfe\xff\x00a", overlay="own", env={})
@example(file=b"llm:\n  api_key: a\n  api_key: b\n", overlay_file=b"", overlay="", env={})
def test_any_configuration_gives_settings_or_errors_with_a_place(
    tmp_path_factory: pytest.TempPathFactory, file: bytes, overlay_file: bytes, overlay: str, env: dict[str, str]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    (folder / "environments").mkdir(parents=True, exist_ok=True)
    path = folder / "any.yaml"
    path.write_bytes(file)
    (folder / "environments" / "own.yaml").write_bytes(overlay_file)
    env = {"THEMES_ENV": overlay, **env}
    found = problems(path, env)
    for problem in found:
        assert isinstance(problem, ConfigError)
        assert "\n" not in str(problem)
        assert PLACE.search(str(problem)), str(problem)
        assert SECRET not in str(problem)
        assert len(str(problem)) < 1_000
    if found:
        with pytest.raises(ConfigError) as caught:
            load(path=path, env=env)
        assert str(caught.value) == str(found[0])
        return
    settings = load(path=path, env=env)
    shown = {key: public(value) for key, value in settings.items()}
    told = json.dumps(shown) + str(settings.origins) + "".join(settings.remarks) + repr(settings)
    # What is no secret by itself may hold anything.
    plain = [value for _, value in settings.items() if isinstance(value, str | Path) and not isinstance(value, Secret)]
    for text in sorted({*map(str, plain), *(json.dumps(str(value))[1:-1] for value in plain)}, key=len, reverse=True):
        told = told.replace(text, "") if text else told
    assert SECRET not in told
    assert all(PLACE.search(place) for place in settings.origins.values() if "environments/" not in place)


def test_the_old_names_that_are_tried_are_all_of_them() -> None:
    assert {name.partition(".")[0] for name in KNOWN} == {SECTION, TODAY}
