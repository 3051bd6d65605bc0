"""Writing single models."""

from __future__ import annotations

from pathlib import Path

from irc.errors import OptionError, OutputError
from irc.ir.graph import Model


def save_model(model: Model, path: Path) -> None:
    """ONNX, or IR text where the name ends in .irc. Raises OptionError for other names, OutputError."""
    if path.suffix == ".onnx":
        from irc.export import save

        save(model, path)
        return
    if path.suffix != ".irc":
        raise OptionError("this is no name for a model", where=str(path), expected="a name that ends in .onnx or .irc")
    from irc.ir.printer import print_model

    try:
        path.write_text(print_model(model) + "\n", encoding="utf-8")
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error
