"""Leave one domain out: configs/domains.py:BENCHMARK.

  pacs         art_painting, cartoon, photo, sketch; 7 classes
  vlcs         CALTECH, LABELME, PASCAL, SUN; 5 classes; in each domain the folders full and test
  officehome   Art, Clipart, Product, RealWorld; 65 classes
  digits-dg    mnist, mnist_m, svhn, syn; 10 classes; in each domain the folders train and val
  folder       your own: DIR/<domain>/<class>, all domains and classes that are there
  digits       handwritten digits rotated, inverted, blurred and noised, to try it out

A network is trained on all domains but one, chosen by validation images of those, and tested once,
at the end, on all images of the one that was held out: WORKDIR/test.json. The recipe is that of the
GFNet-H-Ti baseline of ALOFT (arXiv:2303.11674, main_gfnet.py): official weights, 50 epochs, batches
of 64. Evaluation here resizes and crops, as everywhere in this project; there, whole images are
resized.

  python train.py --config configs/domains.py
  python train.py --config configs/domains.py:pacs --config.data.name=DIR \\
    --config.data.held_out=sketch
  python tools/domains.py --config configs/domains.py:pacs --config.data.name=DIR --seeds 5

All of it, with real output: docs/domains.md.
"""

from configs import default, digits

# Domains (none: all there are), folders of training and validation images, classes (0: counted).
BENCHMARKS = {
  "pacs": (("art_painting", "cartoon", "photo", "sketch"), (), 7),
  "vlcs": (("CALTECH", "LABELME", "PASCAL", "SUN"), ("full", "test"), 5),
  "officehome": (("Art", "Clipart", "Product", "RealWorld"), (), 65),
  "digits-dg": (("mnist", "mnist_m", "svhn", "syn"), ("train", "val"), 10),
  "folder": ((), (), 0),
}


def get_config(benchmark: str = "digits"):
  if benchmark == "digits":
    return _digits()
  if benchmark not in BENCHMARKS:
    known = ", ".join(BENCHMARKS)
    raise ValueError(f"unknown benchmark {benchmark!r}, expected one of {known}, digits")
  domains, folders, num_classes = BENCHMARKS[benchmark]
  config = default.get_config()
  config.name = "domains-{data}"
  config.precision = "bf16"
  config.num_epochs = 50.0
  config.init_checkpoint = "gfnet-h-ti"  # downloads the official weights
  config.model.update(name="gfnet-h-ti", num_classes=num_classes)
  config.model.drop_path_rate = 0.1
  _hold_out(config, domains, folders)
  config.data.update(batch_size=64, eval_batch_size=128)
  config.data.reading.update(workers=8, threads=1, prefetch=2)
  config.optimizer.update(learning_rate=5e-4, reference_batch_size=512)
  config.augment.scale = (0.8, 1.0)
  config.augment.update(interpolation="bilinear", auto_augment="jitter-b0.4-c0.4-s0.4-h0.4")
  config.mixing.update(mixup_alpha=0.0, cutmix_alpha=0.0, smoothing=0.0)
  return config


def _hold_out(config, domains: tuple[str, ...], folders: tuple[str, ...]) -> None:
  """The source `domains`; data.held_out is left to choose."""
  config.data.update(source="domains", train_split="train", eval_split="val", test_split="test")
  config.data.update(domains=domains, folders=folders, held_out="")


def _digits():
  """configs/digits.py with fewer epochs and without its rotations, on three of four domains."""
  config = digits.get_config()
  config.name = "domains-digits"
  config.num_epochs = 30.0
  config.eval_every_epochs = 5.0
  _hold_out(config, (), ())
  config.data.held_out = "rotated"
  config.augment.auto_augment = "affine-r0-t0.12-s0.1-h0"
  return config
