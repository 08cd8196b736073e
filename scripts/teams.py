"""`themes teams`: what each team has spent beside what it may."""

import click
import msgspec

from scripts.lib.connections import connected
from scripts.lib.terminal import say
from scripts.main import settings_from
from tasks.jobs.teams import read_teams


@click.command(epilog="Example: themes teams")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each team.")
def command(*, as_json: bool) -> int:
    """Show what each team has spent of its budget, today and this month (UTC).

    Teams and their budgets are those of teams.budgets; `themes enqueue --team NAME` chooses one.
    """
    settings = settings_from()
    if not settings.teams.budgets:
        say("no team has a budget: set teams.budgets, for instance {research: {usd_per_day: 5, usd_per_month: 100}}")
        return 0
    for state in read_teams(connected(settings), settings.teams.budgets):
        print(msgspec.json.encode(state).decode() if as_json else state.format())
    return 0
