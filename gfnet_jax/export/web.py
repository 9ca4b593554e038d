"""A folder that classifies images in a browser, from any static server."""

import shutil
from pathlib import Path
from typing import Any

from gfnet_jax.errors import UserError
from gfnet_jax.export.onnx import describe, to_onnx
from gfnet_jax.export.web_runtime import find_runtime
from gfnet_jax.files import to_json
from gfnet_jax.inference.saved_model import SavedModel
from gfnet_jax.text import printable

PAGE = Path(__file__).with_name("page")
MODEL, WASM = "model.onnx", "ort-wasm-simd-threaded.wasm"
