"""`themes sandbox-llm`: an OpenAI-compatible server that stands in where there is no key."""

import asyncio
import sys
from functools import partial
from typing import Any

import click

from workers.sandbox.batch import GRAMMAR as BATCH_GRAMMAR
from workers.sandbox.chat import FORMATS, STYLES
from workers.sandbox.faults import DEFAULT_LATENCY, GRAMMAR, KINDS
from workers.sandbox.limit import GRAMMAR as LIMIT_GRAMMAR
from workers.sandbox.server import SandboxServer, serve


@click.command(epilog=f"Kinds of fault: {', '.join(KINDS)}.\n\nExample: themes sandbox-llm --port 0 --latency 50ms")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8089, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--latency", default=DEFAULT_LATENCY, show_default=True, help="0, 50ms, 0.2 (s) or lognormal:MEDIAN:SIGMA."
)
@click.option("--seed", default=0, show_default=True, help="Another seed gives other answers, delays and faults.")
@click.option("--fault", "faults", multiple=True, metavar="RULE", help=f"{GRAMMAR}; may be repeated.")
@click.option("--style", default=STYLES[0], show_default=True, type=click.Choice(STYLES), help="How to answer.")
@click.option("--formats", default=",".join(FORMATS), show_default=True, help="Response formats that are accepted.")
@click.option(
    "--format-refusal", default="400", show_default=True, type=click.Choice(["400", "500"]), help="For the others."
)
@click.option("--api-key", metavar="KEY", help="Refuse requests without this key.")
@click.option("--rate-limit", metavar="LIMIT", help=f"Answer 429 to what exceeds it: {LIMIT_GRAMMAR}.")
@click.option("--batches", default="", metavar="HABITS", help=f"How batches are treated: {BATCH_GRAMMAR}.")
@click.option(
    "--prefix-cache",
    default=0,
    type=click.IntRange(0, 100_000),
    metavar="TOKENS",
    help="Keep beginnings of prompts from this length on, and tell the tokens that were known.",
)
def command(*, formats: str, format_refusal: str, **options: Any) -> None:
    """Serve the sandbox LLM until Ctrl-C. The base URL goes to stdout, alone on its line."""
    accepted = [name.strip() for name in formats.split(",")]
    server = SandboxServer(formats=accepted, format_refusal=int(format_refusal), **options)
    asyncio.run(serve(server, started=partial(_announce, key=options["api_key"])))


def _announce(base_url: str, *, key: str | None) -> None:
    print(base_url, flush=True)
    given = "its --api-key" if key else "any"
    words = f"export OPENAI_BASE_URL={base_url} THEMES_MODEL=sandbox OPENAI_API_KEY=… ({given}; Ctrl-C ends it)"
    print(f"sandbox LLM ready; {words}", file=sys.stderr)
