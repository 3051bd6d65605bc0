"""Errors that a user may see.

Every error says what is wrong, where, what was expected, what was found and what to try.
The command line prints `str(error)` and ends with `error.exit_code`; a traceback is never shown.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class IrcError(Exception):
    """Base of all errors whose cause the user can act on (exit code 2).

    `where` names the place ("model.onnx: node 'conv1' (Conv)"), `hint` what to try.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        expected: str = "",
        got: str = "",
        after: str = "",
        hint: str = "",
    ) -> None:
        self.what, self.where = what, where
        self.expected, self.got, self.after, self.hint = expected, got, after, hint
        super().__init__(self._text())

    def _text(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.expected:
            text += f"; expected {self.expected}"
        if self.got:
            text += f"; got {self.got}"
        if self.after:
            text += f"; after passes [{self.after}]"
        if self.hint:
            text += f"; {self.hint}" if self.hint.startswith("did you mean") else f"; try {self.hint}"
        return text

    def at(self, where: str) -> IrcError:
        """The same error, with its place filled in when it had none (same class)."""
        if not self.where:
            self.where = where
            self.args = (self._text(),)
        return self

    def within(self, model: str) -> IrcError:
        """The same error, with the name of the model in front of its place (same class)."""
        if not self.where.startswith(model):
            self.where = f"{model}: {self.where}" if self.where else model
            self.args = (self._text(),)
        return self

    def following(self, passes: str) -> IrcError:
        """The same error, with the passes run before it filled in when it had none (same class)."""
        if not self.after:
            self.after = passes
            self.args = (self._text(),)
        return self


class ModelError(IrcError):
    """The model file or its graph is not valid, or uses what irc cannot read."""


class ShapeError(ModelError):
    """Shapes cannot be inferred, are not static, or contradict each other."""


class OptionError(IrcError):
    """An option, pass, target or name that does not exist or does not fit."""


class DataError(IrcError):
    """Calibration, evaluation or input data that does not fit the model."""


class UnsupportedError(IrcError):
    """The model is valid, but the target cannot run it (yet). Names every node concerned."""


class VerificationError(IrcError):
    """The compiled result differs from the original. Names the first node that diverges."""


class OutputError(IrcError):
    """The result cannot be written (permissions, full disk)."""


class BudgetError(IrcError):
    """The accuracy budget is exceeded (exit code 3). `table` is the per-layer damage."""

    exit_code = 3
    table: Sequence[Mapping[str, Any]] = ()


class LimitError(IrcError):
    """The result needs more flash or RAM than it may use (exit code 4). Says what would fit."""

    exit_code = 4


class InternalError(IrcError):
    """A defect of irc itself (exit code 1). Says where the reproducer is."""

    exit_code = 1


def suggest(name: str, known: Iterable[str]) -> str:
    """A hint such as "did you mean 'prune'? (known: ...)" for a misspelt name."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "one of " + ", ".join(names)
