"""The exception for mistakes in the user's input, and the check of a type that must hold."""

from typing import TypeVar

T = TypeVar("T")


class SensoriumError(Exception):
    """A mistake in the input rather than in the program.

    The message names the file, row, column or option, says what is wrong with it and what to do.
    The command line prints the message without a traceback and exits with status 1.
    """


def require_type(value: object, expected: type[T]) -> T:
    """Return a value as the type that the program guarantees it to have.

    Args:
        value: a part of a model or a schema whose static type is wider.
        expected: its type.

    Raises:
        TypeError: if it is of another type, which is a mistake in the program.
    """
    if not isinstance(value, expected):
        raise TypeError(f"Expected {expected.__name__}, found {type(value).__name__}.")
    return value
