"""Handwritten digits: a small GFNet on 8x8 scans, the default of train.py.

Data: 1797 scans that ship with scikit-learn, 80 % to train on and 20 % to test on.
Model: 4x4 tokens of 2x2 pixels, 4 blocks of width 64, 0.15 M parameters.
Command: python train.py
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.name = "digits"  # of the default work directory, runs/<name>
  config.seed = 0  # of the initial weights, the order, the augmentation and drop path
  config.num_epochs = 60
  config.eval_every_epochs = 10  # each evaluation is followed by a checkpoint
  config.log_every_steps = 20
  config.keep_checkpoints = 2  # the newest ones; the best is kept besides
  config.label_smoothing = 0.1
  config.precision = "default"  # highest, default or bf16

  config.model = ml_collections.ConfigDict(
    dict(  # arguments of gfnet_jax.create_model
      name="gfnet-ti",
      image_size=8,
      num_classes=10,
      patch_size=2,
      embed_dim=64,
      depth=4,
      drop_path_rate=0.1,
    )
  )
  config.optimizer = ml_collections.ConfigDict(
    dict(
      learning_rate=3e-3,  # the peak, reached after the warm-up
      warmup_epochs=5,
      warmup_learning_rate=1e-6,  # at the first step
      final_learning_rate=1e-5,  # at the end of the cosine
      beta1=0.9,
      beta2=0.999,
      eps=1e-8,
      weight_decay=0.05,
      clip_norm=1.0,  # of all gradients together; 0 does not clip
    )
  )
  config.data = ml_collections.ConfigDict(
    dict(
      name="digits",  # of a TFDS data set, or a directory that holds one
      data_dir="",  # of all TFDS data sets; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets
      train_split="train",
      eval_split="test",
      batch_size=64,  # over all devices
      eval_batch_size=128,
      reading=dict(threads=2, prefetch=8, workers=0),  # per process; workers are processes
    )
  )
  config.augment = ml_collections.ConfigDict(
    dict(crop="pad", padding=1, flip=0.0, auto_augment="", color_jitter=0.0)  # see TrainTransform
  )
  return config
