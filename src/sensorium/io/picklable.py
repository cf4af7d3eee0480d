"""Functions that hold values (closures), made to pickle and to deep-copy with these values."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


class PicklableFunction:
    """A function that pickles as the factory that returned it and the arguments of that call.

    Args:
        factory: the factory, a function of a module.
        args: its positional arguments.
        kwargs: its keyword arguments.
        function: what it returned.
    """

    def __init__(
        self,
        factory: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        function: Callable[..., Any],
    ):
        functools.update_wrapper(self, function)
        self._call = (factory, args, kwargs)
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _call_factory, self._call


def picklable(factory: Callable[P, R]) -> Callable[P, R]:
    """Make the functions that a factory returns pickle and deep-copy.

    Python pickles no function that is defined in another function, and a deep copy of one shares
    the values that it holds, such as the model. Return None where the factory does.
    """

    @functools.wraps(factory)
    def build(*args: P.args, **kwargs: P.kwargs) -> R:
        function = factory(*args, **kwargs)
        if not callable(function):
            return function
        return cast("R", PicklableFunction(build, args, dict(kwargs), function))

    return build


def _call_factory(
    factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    return factory(*args, **kwargs)
