"""The error of settings that do not fit one another."""

import inspect
from collections.abc import Callable
from typing import Any

from opsin.errors import UserError


class SettingError(UserError):
    """Settings of a run that do not fit one another."""


def check_called(field: str, function: Callable[..., Any], arguments: str) -> None:
    """Raises SettingError if the function of a field does not take the arguments named."""
    try:
        inspect.signature(function).bind(*arguments.split(", "))
    except TypeError as error:
        raise SettingError(
            f"{field} is called with ({arguments}), and the function that is given does not take "
            f"that: {error}"
        ) from error
