"""The exception for mistakes in the user's input."""


class SensoriumError(Exception):
    """A mistake in the input rather than in the program.

    The message names the file, row, column or option, says what is wrong with it and what to do.
    The command line prints the message without a traceback and exits with status 1.
    """
