"""The `themes` command."""


def main() -> int:
    """Run one verb."""
    return 0
