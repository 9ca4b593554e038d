"""Milliseconds of the filter's backends, forward with gradient; batch 8, float32.

By platform and (height, width, channels). "auto" chooses from them. Written by
python tools/benchmark.py backends --write
"""

MILLISECONDS = {
  "cpu": {
    (7, 7, 512): {"fft": 2.681, "separable": 0.821, "dense": 1.078},
    (7, 7, 768): {"fft": 3.392, "separable": 1.145, "dense": 1.566},
    (12, 12, 512): {"fft": 6.54, "separable": 2.551, "dense": 5.483},
    (12, 12, 768): {"fft": 8.019, "separable": 3.5, "dense": 8.05},
    (14, 14, 256): {"fft": 4.139, "separable": 2.168, "dense": 4.057},
    (14, 14, 384): {"fft": 5.84, "separable": 2.616, "dense": 6.091},
    (14, 14, 512): {"fft": 7.761, "separable": 3.411, "dense": 8.27},
    (24, 24, 256): {"fft": 10.058, "separable": 7.897, "dense": 31.35},
    (24, 24, 384): {"fft": 14.864, "separable": 10.809, "dense": 45.512},
    (24, 24, 512): {"fft": 23.358, "separable": 15.955, "dense": 65.272},
    (28, 28, 128): {"fft": 7.06, "separable": 6.397},
    (28, 28, 192): {"fft": 10.712, "separable": 10.043},
    (48, 48, 128): {"fft": 23.899, "separable": 28.574},
    (48, 48, 192): {"fft": 33.06, "separable": 43.481},
    (56, 56, 64): {"fft": 18.55, "separable": 27.173},
    (56, 56, 96): {"fft": 24.69, "separable": 32.617},
    (96, 96, 64): {"fft": 54.437, "separable": 107.106},
    (96, 96, 96): {"fft": 78.624, "separable": 140.926},
  },
}
