"""Writing single models."""

from __future__ import annotations

from pathlib import Path

from irc.errors import OptionError
from irc.ir.graph import Model


def check_model_name(path: Path) -> None:
    """Raises OptionError for a name that says nothing about the format."""
    if path.suffix not in (".onnx", ".irc"):
        raise OptionError("this is no name for a model", where=str(path), expected="a name that ends in .onnx or .irc")


def save_model(model: Model, path: Path) -> None:
    """ONNX, or IR text where the name ends in .irc, whole or not at all. Raises OptionError for other names,
    OutputError.
    """
    check_model_name(path)
    if path.suffix == ".onnx":
        from irc.export import save

        save(model, path)
        return
    from irc.export import replacing
    from irc.ir.printer import print_model

    with replacing(path) as file:
        file.write(f"{print_model(model)}\n".encode())
