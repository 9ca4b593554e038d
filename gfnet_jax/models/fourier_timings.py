"""Milliseconds of the filter's backends, forward with gradient, float32.

By platform and (height, width, channels), for a batch of 8 on a CPU and of 128 on an
accelerator; "auto" chooses from them. What was measured (python tools/benchmark.py backends
--write) replaces what is only the compiler's estimate for a TPU v5e, or a GPU's (H100) bytes
over its bandwidth (python tools/compile_ahead.py --program filter).
"""

from typing import Literal, NamedTuple


class Timing(NamedTuple):
  origin: Literal["measured", "estimated"]
  milliseconds: dict[str, float]


TIMINGS = {
  "cpu": {
    (7, 7, 512): Timing("measured", {"fft": 3.018, "separable": 0.948, "dense": 1.145}),
    (7, 7, 768): Timing("measured", {"fft": 3.638, "separable": 1.227, "dense": 1.659}),
    (12, 12, 512): Timing("measured", {"fft": 6.372, "separable": 2.402, "dense": 5.115}),
    (12, 12, 768): Timing("measured", {"fft": 7.669, "separable": 3.643, "dense": 7.784}),
    (14, 14, 256): Timing("measured", {"fft": 4.082, "separable": 2.053, "dense": 3.874}),
    (14, 14, 384): Timing("measured", {"fft": 6.224, "separable": 2.599, "dense": 6.561}),
    (14, 14, 512): Timing("measured", {"fft": 8.678, "separable": 3.488, "dense": 8.555}),
    (24, 24, 256): Timing("measured", {"fft": 9.86, "separable": 7.7, "dense": 31.143}),
    (24, 24, 384): Timing("measured", {"fft": 14.271, "separable": 12.252, "dense": 46.467}),
    (24, 24, 512): Timing("measured", {"fft": 22.079, "separable": 15.986, "dense": 62.508}),
    (28, 28, 128): Timing("measured", {"fft": 9.09, "separable": 7.31}),
    (28, 28, 192): Timing("measured", {"fft": 12.185, "separable": 10.521}),
    (48, 48, 128): Timing("measured", {"fft": 22.314, "separable": 26.671}),
    (48, 48, 192): Timing("measured", {"fft": 43.237, "separable": 48.394}),
    (56, 56, 64): Timing("measured", {"fft": 24.172, "separable": 26.883}),
    (56, 56, 96): Timing("measured", {"fft": 25.765, "separable": 31.913}),
    (96, 96, 64): Timing("measured", {"fft": 51.259, "separable": 100.221}),
    (96, 96, 96): Timing("measured", {"fft": 73.25, "separable": 128.299}),
  },
  "tpu": {
    (14, 14, 384): Timing("estimated", {"fft": 4.57, "separable": 1.714, "dense": 1.14}),
    (28, 28, 192): Timing("estimated", {"separable": 5.0, "dense": 3.2}),
    (56, 56, 96): Timing("estimated", {"fft": 24.0, "separable": 10.0}),
  },
  "gpu": {
    (14, 14, 384): Timing("estimated", {"fft": 0.4, "separable": 0.3, "dense": 0.15}),
    (56, 56, 96): Timing("estimated", {"fft": 1.5, "separable": 1.0}),
  },
}
