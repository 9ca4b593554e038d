"""Fine-tuning on other data sets at 224 pixels: configs/transfer.py:DATASET.

  cifar10 | cifar100 | flowers102 | cars196 | inat2018   TFDS data sets
  inat2019              a folder, as TFDS has none: DIR/train/<class> and DIR/val/<class>
  folder                the same of your own images, whose classes are counted
  digits                the embedded digits, to try it out

Paper: arXiv:2107.00645, table 3. Top-1, published, not measured here:

               CIFAR-10   CIFAR-100   Flowers-102   Cars-196
  gfnet-xs       98.6       89.1         98.1         92.8
  gfnet-h-b      99.0       90.3         98.8         93.2

The official command is known for Cars-196 only (8 GPUs, 64 images each, 1000 epochs); its
settings stand for all. The head is replaced where the number of classes differs. Commands:

  python convert_torch_weights.py gfnet-xs runs/gfnet-xs
  python train.py --config configs/transfer.py:cifar10 --config.init_checkpoint=runs/gfnet-xs
  python train.py --config configs/transfer.py:folder --config.init_checkpoint=runs/gfnet-xs \\
    --config.data.name=DIR
"""

from configs import default, digits

# TFDS name (empty: a folder), classes (0: counted), training split, evaluation split.
DATASETS = {
  "cifar10": ("cifar10", 10, "train", "test"),
  "cifar100": ("cifar100", 100, "train", "test"),
  "flowers102": ("oxford_flowers102", 102, "train", "test"),
  "cars196": ("cars196", 196, "train", "test"),
  "inat2018": ("i_naturalist2018", 8142, "train", "validation"),
  "inat2019": ("", 1010, "train", "val"),
  "folder": ("", 0, "train", "val"),
}


def get_config(dataset: str = "folder"):
  if dataset == "digits":
    return _digits()
  if dataset not in DATASETS:
    raise ValueError(f"unknown data set {dataset!r}, expected one of {', '.join(DATASETS)}, digits")
  name, num_classes, train_split, eval_split = DATASETS[dataset]
  config = default.get_config()
  config.name = "transfer-{data}" if dataset == "folder" else f"transfer-{dataset}"
  config.precision = "bf16"
  config.num_epochs = 1000.0 if dataset == "cars196" else 300.0
  config.eval_every_epochs = 10.0
  config.model.update(name="gfnet-xs", num_classes=num_classes)
  config.model.drop_path_rate = 0.0  # the official script fine-tunes in inference mode
  config.data.update(
    source="tfds" if name else "folder",
    name=name,
    train_split=train_split,
    eval_split=eval_split,
    batch_size=512,
    eval_batch_size=512,
  )
  config.data.reading.update(workers=8, threads=1, prefetch=2)  # each holds whole batches
  config.mixing.group_size = 64
  config.optimizer.update(learning_rate=1e-4, reference_batch_size=512, weight_decay=1e-4)
  # The official script scales the peak only; at its batch of 512 all rates are the same.
  config.optimizer.scale_all_rates = dataset != "cars196" or None
  return config


def _digits():
  """A quarter of the epochs of configs/digits.py, from its checkpoint."""
  config = digits.get_config()
  config.name = "transfer-digits"
  config.init_checkpoint = "runs/digits"
  config.num_epochs /= 4
  config.eval_every_epochs /= 4
  config.optimizer.update(learning_rate=1e-3, warmup_epochs=1.0)
  return config
