"""`--fields`: which fields of each profile a job makes."""

import click

from config.sections import PipelineSettings
from config.settings import Settings
from tasks.errors import ConfigError

fields_option = click.option(
    "--fields", "fields", metavar="NAMES",
    help="Make only these fields of each profile (themes,seasonality,price), and pay for no other.",
)  # fmt: skip


def wanted_fields(settings: Settings, text: str | None) -> tuple[str, ...]:
    """The fields that a text names, as a job keeps them; () for all. Without a text they are those of the settings.

    Raises ConfigError: no prompt file makes such a field.
    """
    wanted = (settings.pipeline if text is None else PipelineSettings(fields=text)).wanted
    if not wanted and text is not None:
        raise click.UsageError("--fields names no field: for instance --fields themes,price")
    if not wanted:
        return ()
    # Late: otherwise `enqueue` needs no prompts.
    from workers.pipeline.fields import canonical
    from workers.pipeline.prompts import stages_of

    stages = stages_of(settings)
    try:
        return canonical(stages, wanted)
    except ConfigError as exc:
        raise ConfigError(f"{'pipeline.fields' if text is None else '--fields'}: {exc}") from exc
