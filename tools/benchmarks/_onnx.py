"""ONNX Runtime for the benchmarks: sessions on the cores that jax and PyTorch have."""

import os

import numpy as np

from gfnet_jax.errors import UserError
from gfnet_jax.inference.saved_model import SavedModel

try:
  import onnxruntime
except ModuleNotFoundError:  # said when it is asked for, not when another benchmark runs
  onnxruntime = None


class Session:
  """A model in ONNX Runtime.

  Args:
    saved: the model.
    weights: see `to_onnx`.
    input: likewise.

  Attributes:
    bytes: of the file.
  """

  def __init__(self, saved: SavedModel, weights: str, input: str = "uint8"):
    from gfnet_jax.export.onnx import to_onnx

    content = to_onnx(saved, weights=weights, input=input).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    # Or its threads would keep the cores busy in the turns of others.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    self._session = onnxruntime.InferenceSession(
      content, options, providers=["CPUExecutionProvider"]
    )
    self.bytes = len(content)

  def __call__(self, images: np.ndarray) -> np.ndarray:
    """The logits of a batch."""
    return self._session.run(["logits"], {"images": images})[0]


def need_onnxruntime() -> None:
  """Raises UserError where it is not installed."""
  if onnxruntime is None:
    raise UserError("this benchmark needs onnx and onnxruntime; install requirements-test.txt")
