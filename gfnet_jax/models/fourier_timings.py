"""Milliseconds of the filter's backends, forward with gradient; batch 8, float32.

By platform and (height, width, channels). "auto" chooses from them. Written by
python tools/benchmark.py backends --write
"""

MILLISECONDS = {
  "cpu": {
    (7, 7, 512): {"fft": 1.614, "separable": 0.487, "dense": 0.698},
    (7, 7, 768): {"fft": 2.596, "separable": 1.067, "dense": 1.369},
    (12, 12, 512): {"fft": 5.52, "separable": 3.286, "dense": 4.376},
    (12, 12, 768): {"fft": 8.955, "separable": 5.177, "dense": 6.406},
    (14, 14, 256): {"fft": 3.211, "separable": 1.634, "dense": 2.484},
    (14, 14, 384): {"fft": 5.79, "separable": 3.399, "dense": 4.842},
    (14, 14, 512): {"fft": 7.98, "separable": 4.704, "dense": 6.573},
    (24, 24, 256): {"fft": 11.669, "separable": 8.17, "dense": 25.259},
    (24, 24, 384): {"fft": 24.17, "separable": 14.441, "dense": 36.337},
    (24, 24, 512): {"fft": 37.221, "separable": 26.649, "dense": 49.163},
    (28, 28, 128): {"fft": 7.265, "separable": 5.338},
    (28, 28, 192): {"fft": 11.926, "separable": 10.05},
    (48, 48, 128): {"fft": 35.862, "separable": 36.877},
    (48, 48, 192): {"fft": 48.184, "separable": 48.234},
    (56, 56, 64): {"fft": 29.542, "separable": 29.889},
    (56, 56, 96): {"fft": 52.98, "separable": 60.278},
    (96, 96, 64): {"fft": 105.547, "separable": 128.394},
    (96, 96, 96): {"fft": 181.922, "separable": 222.372},
  },
}
