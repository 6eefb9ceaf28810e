"""The error of settings that do not fit one another."""


class SettingError(ValueError):
    """Settings of a run that do not fit one another."""
