"""Milliseconds of the filter's backends, forward with gradient, float32; "auto" takes the least.

By platform and (height, width, channels), for a batch of 8 on a CPU and of 128 on others. A row is

- measured: written by python tools/benchmark.py backends --write, in place of what was there
  (the GPU: an H100, three bfloat16 passes);
- estimated: by the compiler for a TPU v5e, three bfloat16 passes, of
  python tools/compile_ahead.py --program filter-gradient (docs/speed.md).
"""

from typing import Literal, NamedTuple


class Timing(NamedTuple):
  """Milliseconds of a filter by backend, and whether they are measured or estimated."""

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
  "gpu": {
    (7, 7, 768): Timing("measured", {"fft": 0.395, "separable": 0.284, "dense": 0.176}),
    (14, 14, 384): Timing("measured", {"fft": 0.635, "separable": 0.346, "dense": 0.378}),
    (28, 28, 192): Timing("measured", {"fft": 1.311, "separable": 0.658}),
    (56, 56, 96): Timing("measured", {"fft": 2.528, "separable": 1.479}),
  },
  "tpu": {
    (7, 7, 768): Timing("estimated", {"separable": 1.012, "dense": 0.227}),
    (14, 14, 384): Timing("estimated", {"separable": 1.522, "dense": 0.66}),
    (28, 28, 192): Timing("estimated", {"separable": 2.929, "dense": 2.831}),
    (56, 56, 96): Timing("estimated", {"separable": 8.064}),
  },
}
