"""The TensorRT backends: enterprise TensorRT, and TensorRT for RTX through the same code."""
