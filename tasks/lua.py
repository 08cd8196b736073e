"""Scripts that Redis runs whole: each is a file `lua/NAME.lua` beside the module that uses it."""

from pathlib import Path


def lua(module: str, name: str) -> str:
    """The text of a script; `module` is the `__file__` of the module that uses it."""
    return Path(module).with_name("lua").joinpath(f"{name}.lua").read_text("utf-8")
