"""The Python interface in one page: compile, load, run, evaluate.

python examples/quickstart.py [OUTPUT_FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import irc

DIGITS = Path(__file__).resolve().parent / "digits"


def main(folder: Path) -> None:
    # The default pipeline is a lossless clean-up: float32, checked against onnxruntime before anything is written.
    irc.compile(DIGITS / "digits.onnx", output=folder / "float")

    # 8-bit, calibrated on 128 images; refused if the compiled library lost more than a point on the held-out ones.
    artifact = irc.compile(
        DIGITS / "digits.onnx",
        output=folder / "int8",
        passes="speed",
        calibration=DIGITS / "digits_calibration.npz",
        evaluation=DIGITS / "digits_eval.npz",
        metric="top1",
        max_drop=1.0,
    )
    print(f"pipeline: {artifact.manifest['pipeline']}")
    print(f"accuracy: {artifact.manifest['accuracy']}")

    # Artifacts for this machine open with neither compiler nor linker.
    with np.load(DIGITS / "digits_eval.npz") as file:
        images, labels = file["image"], file["labels"]
    for name in ("float", "int8"):
        net = irc.load(folder / name)
        scores = net(images[:1])  # positional; net.run({"image": ...}) takes and gives arrays by name
        print(f"{name}: the first digit is a {int(np.argmax(scores))}, and should be a {labels[0]}")

    score = irc.evaluate(folder / "int8", DIGITS / "digits_eval.npz", "agreement", original=DIGITS / "digits.onnx")
    print(f"int8 decides as the original does on {score.score:.2%} of {score.samples} images")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/quickstart"))
