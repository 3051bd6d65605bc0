"""irc, the compressing compiler: a trained ONNX model in, a small and fast library without a runtime out.

    import irc

    artifact = irc.compile("model.onnx", target="arm", output="model-irc")
    net = irc.load("model-irc")        # an artifact for this machine
    y = net(x)

Importing irc costs nothing: what stands behind these names is loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from irc.api import Artifact, Network, Score, compile, evaluate, load, load_model, tune
    from irc.errors import IrcError
    from irc.pipeline.manager import Pipeline

_HOMES = {
    "Artifact": "irc.api",
    "IrcError": "irc.errors",
    "Network": "irc.api",
    "Pipeline": "irc.pipeline.manager",
    "Score": "irc.api",
    "compile": "irc.api",
    "evaluate": "irc.api",
    "load": "irc.api",
    "load_model": "irc.api",
    "tune": "irc.api",
}

__all__ = [
    "Artifact",
    "IrcError",
    "Network",
    "Pipeline",
    "Score",
    "__version__",
    "compile",
    "evaluate",
    "load",
    "load_model",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'irc' has no attribute '{name}'")
    import importlib

    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
