"""Reading what a compilation starts from: the model and its samples."""

from __future__ import annotations

from pathlib import Path

from irc.calibrate.dataset import Dataset
from irc.driver.options import CompileOptions, Data
from irc.errors import ModelError
from irc.frontend import bind, default_batch, load_model, require_static
from irc.ir.clone import clone
from irc.ir.graph import Model


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
    """Samples for `model`. Raises DataError."""
    if data is None:
        return None
    return Dataset.load(data, model) if isinstance(data, Path) else Dataset.of(data, model)
