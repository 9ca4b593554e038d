"""Milliseconds of the filter's backends, forward with gradient; batch 8, float32.

By platform and (height, width, channels). "auto" chooses from them. Written by
python tools/benchmark.py backends --write
"""

MILLISECONDS = {
  "cpu": {
    (7, 7, 512): {"fft": 2.868, "separable": 0.811, "dense": 1.142},
    (7, 7, 768): {"fft": 3.541, "separable": 1.175, "dense": 1.375},
    (12, 12, 512): {"fft": 6.315, "separable": 2.459, "dense": 5.448},
    (12, 12, 768): {"fft": 7.849, "separable": 3.508, "dense": 7.712},
    (14, 14, 256): {"fft": 4.064, "separable": 2.175, "dense": 4.1},
    (14, 14, 384): {"fft": 5.904, "separable": 2.64, "dense": 6.514},
    (14, 14, 512): {"fft": 7.73, "separable": 3.354, "dense": 8.496},
    (24, 24, 256): {"fft": 9.767, "separable": 7.358, "dense": 31.153},
    (24, 24, 384): {"fft": 15.138, "separable": 10.841, "dense": 46.083},
    (24, 24, 512): {"fft": 22.338, "separable": 14.995, "dense": 62.525},
    (28, 28, 128): {"fft": 7.193, "separable": 5.824},
    (28, 28, 192): {"fft": 11.188, "separable": 9.591},
    (48, 48, 128): {"fft": 22.344, "separable": 27.349},
    (48, 48, 192): {"fft": 33.657, "separable": 44.12},
    (56, 56, 64): {"fft": 17.306, "separable": 22.853},
    (56, 56, 96): {"fft": 24.636, "separable": 35.196},
    (96, 96, 64): {"fft": 51.491, "separable": 106.025},
    (96, 96, 96): {"fft": 79.256, "separable": 143.048},
  },
}
