"""`irc COMMAND ...`: finds the command, runs it, and turns errors into a few lines and an exit code.

Exit codes: 0 done; 1 a defect of irc (with a file for the report); 2 something the user can mend; 3 over the accuracy
budget; 4 over a limit of RAM or flash; 130 interrupted; 128 + N ended by signal N. Nothing but the standard library is
imported here: `irc --help` must be instant.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from irc.cli.arguments import Parser
from irc.errors import BudgetError, InternalError, IrcError, OptionError, OutputError, suggest

COMMANDS: dict[str, str] = {
    "compile": "compile an ONNX model into a library",
    "compress": "compress a model and write it as ONNX, for other runtimes",
    "opt": "run passes and write the model as ONNX",
    "run": "run a compiled artifact on inputs",
    "verify": "check an artifact against its model",
    "evaluate": "score a model or an artifact on labelled data",
    "bench": "measure latency, also against other runtimes",
    "tune": "measure the kernels of a model on this machine, for irc compile --tuning",
    "inspect": "operators, parameters, multiply-adds and bytes of a model or an artifact",
    "explain": "what passes did to a model and left alone, and what was chosen for each kernel",
    "passes": "list the passes, their options and the presets",
    "targets": "list the targets",
    "cmake-dir": "print the folder of irc's CMake package",
    "doctor": "check the installation and the tools that irc can use",
}
"""Command -> summary. The command NAME lives in irc.cli.NAME_command (- as _)."""

_INTERRUPTED, _BROKEN_PIPE = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with _terminable():
            code = _dispatch(arguments)
            sys.stdout.flush()
        return code
    except IrcError as error:
        return _fail(error)
    except _Terminated as ended:
        _say("irc: terminated")
        return 128 + ended.number
    except KeyboardInterrupt:
        _say("irc: interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout is gone; keep Python from complaining again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except OSError as error:
        return _fail(_os_error(error))
    except Exception as error:
        return _fail(_internal(error, arguments))


class _Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: ends like Ctrl-C, so that nothing is left behind."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _terminable() -> Iterator[None]:
    """Signals that would end the process at once raise _Terminated instead, where nobody else has set them."""

    def end(number: int, frame: object) -> None:
        raise _Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or (arguments[0] in ("-h", "--help", "help") and len(arguments) == 1):
        print(usage(), end="")
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        import irc

        print(f"irc {irc.__version__}")
        return 0
    name = arguments[0]
    if name == "help":
        return _dispatch([*arguments[1:], "--help"])
    if name.startswith("-"):
        raise OptionError(f"there is no option '{name}'", hint="irc --help")
    if name not in COMMANDS:
        raise OptionError(f"there is no command '{name}'", hint=suggest(name, COMMANDS))
    module = importlib.import_module(f"irc.cli.{name.replace('-', '_')}_command")
    parser = Parser(prog=f"irc {name}", description=module.__doc__)
    module.add_arguments(parser)
    parsed = parser.parse_all(arguments[1:])
    if parsed is None:
        return 0
    code: int = module.run(parsed)
    return code


def usage() -> str:
    """The text of `irc --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return (
        "usage: irc COMMAND ...\n\n"
        "The compressing compiler: a trained ONNX model in, a small and fast library out.\n\n"
        "  irc compile model.onnx --target arm\n\ncommands:\n" + "\n".join(lines) + "\n\n"
        "irc COMMAND --help shows the options of a command; irc --version the version.\n"
    )


def _fail(error: IrcError) -> int:
    _say(f"irc: error: {error}")
    if isinstance(error, BudgetError) and error.table:
        from irc.cli.output import errors
        from irc.report.text import damage_table

        errors().print(damage_table(error.table))
    return error.exit_code


def _say(text: str) -> None:
    """To stderr, even where that cannot show all characters or is closed."""
    if sys.stderr is None:
        return
    try:
        print(text, file=sys.stderr)
    except UnicodeEncodeError:
        print(text.encode("ascii", "backslashreplace").decode(), file=sys.stderr)
    except (OSError, ValueError):  # closed
        return


def _os_error(error: OSError) -> IrcError:
    """Disks fill up and permissions are missing: the user's to mend, not a defect."""
    where = str(error.filename) if error.filename else ""
    return OutputError(error.strerror or str(error), where=where)


def _internal(error: Exception, arguments: list[str]) -> InternalError:
    """Everything needed for a report goes to a file; the terminal shows one line."""
    import platform
    import tempfile
    import traceback

    import irc

    text = (
        f"irc {irc.__version__}, Python {platform.python_version()}, {platform.platform()}\n"
        f"irc {' '.join(arguments)}\n\n" + "".join(traceback.format_exception(error))
    )
    what = f"a defect of irc: {type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="irc-crash-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
    except OSError:
        return InternalError(what.rstrip(": "))
    return InternalError(what.rstrip(": "), hint=f"a report with the file {file.name}")


if __name__ == "__main__":
    sys.exit(main())
