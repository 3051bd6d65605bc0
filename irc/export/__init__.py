"""ONNX export: the IR back to a ModelProto or a file, after any pass."""

from irc.export.opsets import compatible_opset
from irc.export.portable import make_portable
from irc.export.region import subgraph_model
from irc.export.save import replacing, save, to_bytes, weight_bytes
from irc.export.writer import to_proto

__all__ = [
    "compatible_opset",
    "make_portable",
    "replacing",
    "save",
    "subgraph_model",
    "to_bytes",
    "to_proto",
    "weight_bytes",
]
