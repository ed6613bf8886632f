"""The errors a user can cause. Each becomes one line on stderr: what, which file, and the remedy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any


class NextScaleError(Exception):
    """A mistake or a mishap outside the program (a bad file, a wrong option, a full disk).

    The message is one sentence for the user that names the remedy; it never holds a traceback.
    """


class ImageError(NextScaleError):
    """A picture that cannot be read or written."""


class ModelError(NextScaleError):
    """A model folder or checkpoint that cannot be loaded, saved or converted."""


class OutputError(NextScaleError):
    """The standard output takes no more."""


class OptionError(NextScaleError):
    """Options that contradict each other or the model."""


def check_type(options: Any, name: str, kind: type, allowed: str) -> None:
    """Refuse a value of another type: what a program passes, since a command line knows its types.

    Args:
        allowed: what is wanted, as in "a whole number".

    Raises:
        OptionError: naming the option, what is allowed and what it got.
    """
    value = getattr(options, name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise OptionError(f"{name.replace('_', '-')} must be {allowed}, got {value!r}")


def check_values(options: Any, checks: Iterable[tuple[str, bool, str]]) -> None:
    """Refuse the first value that is out of range, or no finite number.

    Args:
        checks: name of the option, whether its value is good, and what is allowed, as in "0 or more".

    Raises:
        OptionError: naming the option, what is allowed and what it got.
    """
    for name, good, allowed in checks:
        if not good:
            raise OptionError(f"{name.replace('_', '-')} must be {allowed}, got {getattr(options, name)}")
    check_finite(options)


def check_finite(options: Any) -> None:
    """Refuse nan and inf, which most bounds let pass, in a dataclass of options and in those inside it.

    Anything else passes.

    Raises:
        OptionError: naming the option and what it got.
    """
    for field in dataclasses.fields(options) if dataclasses.is_dataclass(options) else ():
        value = getattr(options, field.name)
        check_finite(value)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise OptionError(f"{field.name.replace('_', '-')} must be a finite number, got {number}")
