"""The error of settings that do not fit one another."""

from opsin.errors import UserError


class SettingError(UserError):
    """Settings of a run that do not fit one another."""
