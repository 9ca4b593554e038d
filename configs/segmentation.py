"""Semantic FPN on a hierarchical network: configs/segmentation.py:MODEL, or :shapes to try it out.

  gfnet-h-ti | gfnet-h-s | gfnet-h-b   on ADE20K, from the official weights
  shapes                               a small network on generated shapes, the default

Paper: arXiv:2107.00645, which names 44.8 mIoU for gfnet-h-b, not measured here. The recipe is PVT's
Semantic FPN, as the authors say they used it: 40,000 steps of 32 images (8 GPUs x 4) at 512 pixels.
The data are ADE20K's own folders: images/ and annotations/, each with training/ and validation/,
beside objectInfo150.txt. Commands:

  python train.py --config configs/segmentation.py --workdir runs/shapes
  python train.py --config configs/segmentation.py:gfnet-h-b --config.data.name=DIR
  python eval.py --checkpoint runs/shapes

All of it, with real output: docs/segmentation.md.
"""

from configs import default

STEPS, BATCH, IMAGES = 40_000, 32, 20_210  # IMAGES: for training in ADE20K


def get_config(model: str = "shapes"):
  config = default.get_config()
  config.name = f"segmentation-{model}"
  config.model.decoder = "semantic-fpn"
  config.augment.auto_augment = ""  # what moves pixels would have to move those of masks
  config.mixing.update(mixup_alpha=0.0, cutmix_alpha=0.0, smoothing=0.0)
  config.optimizer.update(schedule="poly", warmup_epochs=0.0, final_learning_rate=0.0)
  config.optimizer.update(weight_decay=1e-4, clip_norm=0.0)
  if model == "shapes":
    return _shapes(config)
  config.init_checkpoint = model  # the official weights; or a checkpoint of yours
  config.model.update(name=model, image_size=512, num_classes=150)
  config.model.drop_path_rate = 0.1
  config.precision = "bf16"
  config.num_epochs = STEPS * BATCH / IMAGES
  config.eval_every_epochs = 4000 * BATCH / IMAGES
  config.optimizer.learning_rate = 2e-4
  config.data.update(source="masks", train_split="training", eval_split="validation")
  config.data.reduce_zero_label = True
  config.data.update(batch_size=BATCH, eval_batch_size=8)
  config.data.reading.update(workers=8, threads=1, prefetch=2)
  return config


def _shapes(config):
  """Trains from random weights in about a minute on two CPU cores."""
  config.report = True  # with pictures beside the truth
  config.num_epochs = 8.0
  config.eval_every_epochs = 4.0
  config.log_every_steps = 50
  config.model.update(name="gfnet-h-ti", image_size=64, num_classes=0)  # 0: counted
  config.model.update(patch_size=4, embed_dims=(32, 64, 128), depths=(1, 1, 2))
  config.model.decoder_dims = (32, 32)
  config.model.drop_path_rate = 0.0
  config.model.layer_scale_init = 1.0  # 1e-3, for deep networks and long runs, learns slowly here
  config.optimizer.update(learning_rate=3e-3, schedule="cosine", warmup_epochs=0.5)
  config.segmentation.update(scale=(0.8, 1.25), distortion=0.0)
  config.data.update(source="shapes", name="shapes", train_split="train", eval_split="test")
  config.data.update(batch_size=8, eval_batch_size=20)
  config.data.reading.update(threads=2, prefetch=4)
  return config
