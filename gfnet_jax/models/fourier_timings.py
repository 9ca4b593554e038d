MILLISECONDS = {
  "cpu": {
    (14, 14, 384): {"fft": 2.0, "separable": 1.0},
    (56, 56, 64): {"fft": 9.0, "separable": 10.0},
  }
}
