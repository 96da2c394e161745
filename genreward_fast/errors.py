"""The exceptions that a user sees as a single line instead of a traceback."""


class UserError(Exception):
    """Bad input. The message is one line: it names the file or the value, and says what to do."""

    exit_code = 2


class TrainingDiverged(UserError):
    """A loss is not finite. The message names the loss and the last good checkpoint."""

    exit_code = 1


class Interrupted(Exception):
    """A signal stopped a run in order, after a checkpoint."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signal_number
