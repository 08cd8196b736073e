"""Charts as inline SVG, coloured by classes: without style attributes and script, for a strict security policy."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

WIDTH: Final = 600
HEIGHT: Final = 100
#: Kinds of what takes time -> hops; a class of the style sheet each.
KINDS: Final[Mapping[str, frozenset[str]]] = {
    "llm": frozenset({"llm.connect", "llm.first_byte", "llm.body"}),
    "wait": frozenset({"queue.wait", "lane.wait", "llm.rate_wait", "llm.pool_wait", "llm.backoff", "flight.wait"}),
    "cache": frozenset({"cache.get", "cache.put", "flight.claim", "publish"}),
    "cpu": frozenset({"llm.validate"}),
    "store": frozenset({"result.wait", "db.commit"}),
}


def kind_of(hop: str) -> str:
    """The kind of a hop; what is new counts as the cache's: a trip somewhere."""
    return next((kind for kind, hops in KINDS.items() if hop in hops), "cache")


def curve(values: Sequence[float], label: str, *, kind: str = "llm") -> str:
    most = max(values, default=0.0) or 1.0
    width = WIDTH / max(1, len(values))
    points = [f"M0 {HEIGHT}"]
    for index, value in enumerate(values):
        height = HEIGHT * (1 - max(0.0, value) / most)
        points.append(f"L{index * width:.2f} {height:.2f}L{(index + 1) * width:.2f} {height:.2f}")
    path = "".join(points)
    return (
        f'<svg class="curve" viewBox="0 -2 {WIDTH} {HEIGHT + 4}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">'
        f'<path class="area {kind}" d="{path}L{WIDTH} {HEIGHT}Z"/><path class="edge {kind}" d="{path}"/>'
        f'<line class="floor" x1="0" y1="{HEIGHT}" x2="{WIDTH}" y2="{HEIGHT}"/></svg>'
    )


def bar(start: float, share: float, kind: str, label: str) -> str:
    """One bar of a waterfall: where it begins, and how wide it is, as shares of the whole (0-1)."""
    begin, wide = _clamp(start), _clamp(share)
    wide = min(max(wide, 0.003 if share else 0.0), 1 - begin + 0.003)
    return _bar(f'<rect class="{kind}" x="{begin * 1000:.1f}" width="{wide * 1000:.1f}" height="10"/>', label)


def stack(shares: Mapping[str, float], label: str) -> str:
    parts, begin = [], 0.0
    for hop, share in shares.items():
        wide = min(_clamp(share), max(0.0, 1 - begin))
        title = f"<title>{escape(hop)} {share:.0%}</title>"
        parts.append(
            f'<rect class="{kind_of(hop)}" x="{begin * 1000:.1f}" width="{wide * 1000:.1f}" height="10">{title}</rect>'
        )
        begin += wide
    return _bar("".join(parts), label)


def _bar(parts: str, label: str) -> str:
    return (
        f'<svg class="bar" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'<rect class="track" width="1000" height="10"/>{parts}</svg>'
    )


def _clamp(share: float) -> float:
    return min(1.0, max(0.0, share))
