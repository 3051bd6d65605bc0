"""ONNX import: from a file or a ModelProto to the IR."""

from irc.frontend.bind import bind, default_batch, require_static
from irc.frontend.load import from_proto, load_model

__all__ = ["bind", "default_batch", "from_proto", "load_model", "require_static"]
