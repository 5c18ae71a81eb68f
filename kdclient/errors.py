"""What a user can put right."""


class UserError(Exception):
    """A mistake in what was given to a command.

    Its text is the one line that the user sees: what is wrong and what to do.
    """
