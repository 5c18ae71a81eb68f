"""What goes wrong in ways that a user can mend."""


class UserError(Exception):
    """A mistake or a missing thing; the message is one line that says what to do.

    Args:
        message: The line for stderr.
        code: Exit status: 1 when the work failed, 2 when the command was called wrongly.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
