"""The verbs: one file per `themes` subcommand."""
