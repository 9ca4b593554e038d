"""Milliseconds of the filter's backends, forward with gradient; batch 8, float32.

By platform and (height, width, channels). "auto" chooses from them. Written by
python tools/benchmark.py backends --write
"""

MILLISECONDS = { 'cpu': { (7, 7, 512): {'dense': 0.865, 'fft': 3.076, 'separable': 0.785},
           (7, 7, 768): {'dense': 1.654, 'fft': 5.174, 'separable': 2.224},
           (12, 12, 512): {'dense': 8.11, 'fft': 15.967, 'separable': 5.981},
           (12, 12, 768): {'dense': 14.995, 'fft': 18.913, 'separable': 9.42},
           (14, 14, 256): {'dense': 5.64, 'fft': 6.51, 'separable': 2.811},
           (14, 14, 384): {'dense': 6.143, 'fft': 6.411, 'separable': 4.261},
           (14, 14, 512): {'dense': 12.356, 'fft': 15.382, 'separable': 8.012},
           (24, 24, 256): {'dense': 90.912, 'fft': 23.731, 'separable': 21.172},
           (24, 24, 384): {'dense': 264.952, 'fft': 70.232, 'separable': 40.73},
           (24, 24, 512): {'dense': 270.476, 'fft': 269.426, 'separable': 144.073},
           (28, 28, 128): {'fft': 13.534, 'separable': 8.875},
           (28, 28, 192): {'fft': 85.891, 'separable': 40.069},
           (48, 48, 128): {'fft': 164.035, 'separable': 153.894},
           (48, 48, 192): {'fft': 236.942, 'separable': 163.972},
           (56, 56, 64): {'fft': 79.935, 'separable': 73.271},
           (56, 56, 96): {'fft': 207.381, 'separable': 212.805},
           (96, 96, 64): {'fft': 223.969, 'separable': 336.259},
           (96, 96, 96): {'fft': 510.294, 'separable': 763.735}}}
