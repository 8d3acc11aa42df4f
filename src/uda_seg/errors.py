"""The one exception that reaches a person."""

from __future__ import annotations


class UserError(Exception):
    """Something the person can mend: one clear line that says what is wrong, in which file, and the cure.

    Commands print it without a stack of frames and return exit code 1.
    """
