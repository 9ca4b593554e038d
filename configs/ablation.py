"""The token mixer of gfnet-xs exchanged, on ImageNet-1k at 224 pixels: configs/ablation.py:MIXER.

Paper: arXiv:2107.00645, table 6. Published, not measured here:

  mixer                                    parameters   operations   top-1
  conv3           depthwise 3x3               15 M        2.8 G       77.7
  conv5           depthwise 5x5               15 M        2.9 G       78.1
  conv7           depthwise 7x7               15 M        2.9 G       78.2
  spatial-mlp     linear over tokens          15 M        3.0 G       76.6
  attention       self-attention              22 M        4.6 G       79.8
  fnet            Fourier transform           15 M        2.9 G       71.2
  global-filter                               16 M        2.9 G       78.6

The rows of the spatial MLP and of self-attention have the figures of the paper's ResMLP-12 and
DeiT-S, whose blocks differ from these: expect other accuracies here. `fnet` here
transforms tokens and channels, as FNet does; it is not certain that the paper's row does, and 71.2
may be that of another layer. Not in the paper:
`identity`, no mixing at all, and `global-local` of HorNet (arXiv:2207.14284).
Everything but the mixer is configs/imagenet.py:gfnet-xs. Commands:

  python train.py --config configs/ablation.py:conv7 --config.data.data_dir=DIR
  python tools/compare_mixers.py      # all of them on handwritten digits, in minutes
"""

from configs import imagenet


def get_config(mixer: str = "global-filter"):
  config = imagenet.get_config("gfnet-xs")
  config.name = f"ablation-{mixer}"
  config.model.mixer = mixer
  return config
