"""Quantizes models with NNCF, OpenVINO's own way, for `latency.py --nncf FOLDER`.

    pip install nncf openvino
    python benchmarks/nncf_models.py MODEL... -o FOLDER [--calibration FOLDER_OF_NPZ]

NNCF's defaults (mixed preset, fast bias correction) on MODEL.npz, or on 16 random samples: random weights have no
accuracy to lose, and speed does not depend on the values.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from common import Array, models

SAMPLES = 16


def samples(model: Path, folder: Path | None) -> list[dict[str, Array]]:
    """Feeds with the model's fixed shapes; integers are small, floats N(0, 1)."""
    import openvino as ov

    if folder is not None and (folder / f"{model.stem}.npz").is_file():
        with np.load(folder / f"{model.stem}.npz") as file:
            arrays = {name: file[name] for name in file.files if name not in ("labels", "label", "y")}
        return [{name: array[i : i + 1] for name, array in arrays.items()} for i in range(len(arrays[min(arrays)]))]
    rng = np.random.default_rng(0)
    feeds = []
    for _ in range(SAMPLES):
        feed: dict[str, Array] = {}
        for port in ov.Core().read_model(str(model)).inputs:
            shape = [d.get_length() if d.is_static else 1 for d in port.partial_shape]
            integer = port.element_type.is_integral()
            feed[port.any_name] = rng.integers(0, 2, shape) if integer else rng.standard_normal(shape, np.float32)
        feeds.append(feed)
    return feeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--calibration", type=Path)
    options = parser.parse_args()
    import nncf
    import openvino as ov

    options.output.mkdir(parents=True, exist_ok=True)
    for path in models(options.models):
        feeds = samples(path, options.calibration)
        network = ov.Core().read_model(str(path))
        network.reshape({name: list(array.shape) for name, array in feeds[0].items()})
        transformer = nncf.ModelType.TRANSFORMER if "LayerNormalization" in path.read_bytes().decode("latin1") else None
        quantized = nncf.quantize(network, nncf.Dataset(feeds), model_type=transformer, subset_size=len(feeds))
        ov.save_model(quantized, options.output / f"{path.stem}.xml", compress_to_fp16=False)
        print(options.output / f"{path.stem}.xml")


if __name__ == "__main__":
    main()
