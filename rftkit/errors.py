"""Every error that rftkit raises on purpose, in one tree.

    RftkitError
    ├── InputError (ValueError)        the user's input cannot be used; nothing was changed
    │   ├── RowError                   a dataset row, with file, line and field
    │   ├── GraderSpecError            a grader spec, with the path of the field
    │   └── RequestError               a request body, with the name of the parameter
    ├── NotFoundError (LookupError)    an id or name that does not exist
    ├── MissingExtraError (ImportError) an optional part of rftkit is not installed
    ├── PlatformError                  the local platform cannot start, be reached or be written
    ├── EngineLostError                the training service does not answer, or lost its state
    ├── JobFailedError                 a job ended in `failed` or `cancelled`
    └── ReportError                    a report notebook cannot run or failed while running

Each message states what was found, what was expected and what to do next. `code` and `param` are
the words of the OpenAI error body, so that the platform can put any InputError on the wire as is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "EngineLostError",
    "GraderSpecError",
    "InputError",
    "JobFailedError",
    "MissingExtraError",
    "NotFoundError",
    "PlatformError",
    "ReportError",
    "RequestError",
    "RftkitError",
    "RowError",
    "nearest_name",
]


class RftkitError(Exception):
    """Root of the tree."""


class InputError(RftkitError, ValueError):
    """The user's input cannot be used."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        """`param` names the offending field as it is spelled on the wire."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class RowError(InputError):
    """A dataset row cannot be used. `str(error)` starts with `file:line:`."""

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        line: int | None = None,
        param: str | None = None,
    ) -> None:
        """`line` counts from 1; `param` is the key of the row, for example `messages[1].role`."""
        where = f"{path or 'row'}:{line}: " if line is not None else ""
        super().__init__(where + message, param=param, code="invalid_row")
        self.path = path
        self.line = line


class GraderSpecError(InputError):
    """A grader spec is malformed. `param` is the path of the field, such as `graders.a.input`."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param, code="invalid_grader")


class RequestError(InputError):
    """A request body is malformed."""


class NotFoundError(RftkitError, LookupError):
    """An id or a name that does not exist."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "not_found") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class MissingExtraError(RftkitError, ImportError):
    """An optional part of rftkit is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        """`extra` is the name in brackets of `pip install 'rftkit[extra]'`."""
        super().__init__(
            f"this needs the package {package!r}, which is not installed; "
            f"type: pip install 'rftkit[{extra}]' (in a clone: pip install -e '.[{extra}]'; "
            f"with uvx: --from 'rftkit[{extra}]')"
        )
        self.package = package
        self.extra = extra


class PlatformError(RftkitError):
    """The local platform cannot start, be reached, or write its home."""


class EngineLostError(RftkitError):
    """The remote server of an engine does not answer, or lost its state."""

    refused = False
    """Whether it answered with a refusal, so that a retry may not help."""


class JobFailedError(RftkitError):
    """A job that was waited for ended in `failed` or `cancelled`."""


class ReportError(RftkitError):
    """A report notebook was called wrongly, or one of its cells failed."""


def nearest_name(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The hint after an unknown name: the name that was probably meant, or all names. `cutoff` is
    how similar the two have to be, from 0 to 1.

    >>> nearest_name("batchsize", ["batch_size", "n_epochs"])
    'did you mean batch_size?'
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    if not near:  # try again without case, hyphens and spaces
        plain = {_plain(each): each for each in reversed(names)}
        near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=cutoff)
        near = [plain[each] for each in near]
    if near:
        return f"did you mean {near[0]}?"
    return f"there are {', '.join(names)}" if names else "there are none"


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
