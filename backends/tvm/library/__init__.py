"""The road of the long tail: any ONNX operator with static shapes -> one object without a runtime."""
