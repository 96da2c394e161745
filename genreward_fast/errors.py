"""The exceptions that a user sees as a single line instead of a traceback, and what fits into one."""


class UserError(Exception):
    """Bad input. The message is one line: it names the file or the value, and says what to do."""


class RunFailed(Exception):
    """A run could not go on, through no fault of the input. The last checkpoint is intact."""


class TrainingDiverged(RunFailed):
    """A loss is not finite. The message names the loss and the last good checkpoint."""


class Interrupted(Exception):
    """A signal stopped a run in order, after a checkpoint."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class if it has none: what fits into a one-line message."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
