"""The root of every error this project raises, and the one that settings raise; `tasks.errors` has the others."""


class ThemesError(Exception):
    """Anything this project raises on purpose. Its text is one clear line that names the place and the mend."""

    exit_code = 1


class ConfigError(ThemesError):
    """A setting, option or environment variable is wrong; nothing was started."""

    exit_code = 2
