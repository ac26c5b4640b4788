"""The errors a user can meet, one base and few leaves, caught once at the edge (kinbase.cli).

A message is one line: what happened, then what to do. Anything that is not a KinbaseError
is a bug and shows its traceback. Exit codes are the CLI's contract.
"""


class KinbaseError(Exception):
    """The request failed: unknown model, failed query, wrong base."""

    exit_code = 1


class QueryError(KinbaseError):
    """A query that cannot be understood: what is wrong, and where."""

    def __init__(self, message: str, line: int, text: str, at: int) -> None:
        super().__init__(message)
        self.line = line
        """The line of the query, from 1."""
        self.text = text
        """That line, or the part of a long one that is meant."""
        self.at = at
        """The place in `text`, from 0."""


class CheckpointError(KinbaseError):
    """A file that was to be imported is truncated, lying, unsafe or of an unknown kind."""


class WeightsRefused(CheckpointError):
    """Weights that cannot be read where all else that is said beside them can; that is kept."""


class DiskError(KinbaseError):
    """The disk is full, or a file cannot be written: not the fault of what was to be written."""


class UsageError(KinbaseError):
    """The arguments contradict each other."""

    exit_code = 2


class DatabaseError(KinbaseError):
    """The database file is locked, unreadable, foreign, or of another schema."""

    exit_code = 3
