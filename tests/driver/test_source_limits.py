"""C source with limits is for a microcontroller."""

from pathlib import Path

import pytest

from irc.driver.compile import compile_model
from irc.driver.options import CompileOptions
from irc.export import save
from irc.ir.builder import GraphBuilder, weights
from irc.targets import get_target


@pytest.fixture
def image_model(tmp_path: Path) -> Path:
    """A convolution that Winograd's transforms suit."""
    b = GraphBuilder("image")
    x = b.input("x", "float32", [1, 16, 28, 28])
    b.output(b.conv(x, weights(16, 16, 3, 3), weights(16, seed=1), pads=[1, 1, 1, 1]), name="y")
    path = tmp_path / "image.onnx"
    save(b.build(), path)
    return path


@pytest.mark.parametrize(
    ("limits", "transformed"), [({}, True), ({"flash": 1 << 20}, False), ({"ram": 1 << 20}, False)]
)
def test_weights_stay_small_under_limits(
    image_model: Path, kernel_cache: Path, limits: dict[str, int], transformed: bool
) -> None:
    options = CompileOptions(
        image_model, get_target("c"), stop_after="kernels", cache_dir=kernel_cache, workers=1, **limits
    )
    program = compile_model(options).program
    assert program is not None
    assert any("F(4x4,3x3)" in step.label for step in program.steps) == transformed
    assert (program.weights_bytes > 4 * 16 * 16 * 36) == transformed
