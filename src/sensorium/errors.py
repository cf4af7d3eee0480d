"""The one error a user is meant to read: what is wrong, with which file, column or option, and what to do."""


class SensoriumError(Exception):
    """A mistake in the input, not in the program. The CLI prints its text alone and exits with status 1."""
