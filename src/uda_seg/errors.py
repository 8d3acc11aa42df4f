"""The one exception that reaches a person."""

from __future__ import annotations


class UserError(Exception):
    """Something the person can fix: one clear line that says what is wrong, in which file, and the cure.

    Commands print it without a stack of frames and return exit code 1.
    """


def user_error(error: BaseException | None) -> UserError | None:
    """The UserError that `error` is or was raised from (by Hydra's instantiate), as one line; None where there is none.

    A UserError that a loader's worker raises arrives with a traceback as its text; the line is its end.
    """
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return None if error is None else UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip())
