"""Milliseconds of the filter's backends, forward with gradient; batch 8, float32.

By platform and (height, width, channels). "auto" chooses from them. Written by
python tools/benchmark.py backends --write
"""

MILLISECONDS = {
  "cpu": {
    (7, 7, 512): {"fft": 1.637, "separable": 0.504, "dense": 0.592},
    (7, 7, 768): {"fft": 2.547, "separable": 1.065, "dense": 1.382},
    (12, 12, 512): {"fft": 5.563, "separable": 3.268, "dense": 4.252},
    (12, 12, 768): {"fft": 8.986, "separable": 5.219, "dense": 6.412},
    (14, 14, 256): {"fft": 6.086, "separable": 2.722, "dense": 5.094},
    (14, 14, 384): {"fft": 7.274, "separable": 4.791, "dense": 5.439},
    (14, 14, 512): {"fft": 15.143, "separable": 7.888, "dense": 12.132},
    (24, 24, 256): {"fft": 21.405, "separable": 13.25, "dense": 48.013},
    (24, 24, 384): {"fft": 73.492, "separable": 21.077, "dense": 70.47},
    (24, 24, 512): {"fft": 80.376, "separable": 56.16, "dense": 106.383},
    (28, 28, 128): {"fft": 12.145, "separable": 11.946},
    (28, 28, 192): {"fft": 27.905, "separable": 14.947},
    (48, 48, 128): {"fft": 120.389, "separable": 107.259},
    (48, 48, 192): {"fft": 183.989, "separable": 132.064},
    (56, 56, 64): {"fft": 51.028, "separable": 34.006},
    (56, 56, 96): {"fft": 163.028, "separable": 157.367},
    (96, 96, 64): {"fft": 205.774, "separable": 193.43},
    (96, 96, 96): {"fft": 129.427, "separable": 171.357},
  },
}
