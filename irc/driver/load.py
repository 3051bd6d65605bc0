"""Reading what a compilation starts from: the model and its samples."""

from __future__ import annotations

from pathlib import Path

from irc.calibrate.dataset import Dataset
from irc.driver.options import CompileOptions, Data
from irc.errors import ModelError
from irc.frontend import bind, default_batch, load_model, require_static
from irc.ir.clone import clone
from irc.ir.graph import Model
from irc.ir.quantization import Ports


def load_static(options: CompileOptions) -> Model:
    """The model with all shapes known. Raises ModelError, ShapeError."""
    if isinstance(options.model, Path):
        model = load_model(options.model, shapes=options.shapes, dims=options.dims)
    else:
        model = clone(options.model)
        bind(model, options.shapes, options.dims)
    model.notes.extend(default_batch(model))
    require_static(model)
    if not model.graph.outputs:
        raise ModelError("the model has no output", where=model.name)
    return model


def load_data(data: Data | None, model: Model) -> Dataset | None:
    """Samples for `model`, with integers or real numbers for quantized inputs. Raises DataError."""
    if data is None:
        return None
    ports = Ports.of(model.graph)
    return Dataset.load(data, model, ports) if isinstance(data, Path) else Dataset.of(data, model, ports=ports)


def load_calibration(data: Data | None, model: Model) -> Dataset | None:
    """The same, whose feeds are what `model` takes: real numbers for quantized inputs are quantized."""
    found = load_data(data, model)
    return None if found is None else found.quantized(Ports.of(model.graph))
