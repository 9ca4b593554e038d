"""ImageNet-1k at 224 pixels from scratch, the official recipe.

Paper: Global Filter Networks for Image Classification (arXiv:2107.00645), table 2.
Hardware of the published runs: 8 GPUs, 128 images each.
Top-1 on the validation images, published, not measured here:

  gfnet-ti 74.6   gfnet-xs 78.6   gfnet-s 80.0   gfnet-b 80.7
  gfnet-h-ti 80.1   gfnet-h-s 81.5   gfnet-h-b 82.9

Data: docs/prepare_data.md. Command, for any of the seven:

  python train.py --config configs/imagenet.py:gfnet-xs --config.data.data_dir=DIR
"""

from configs import default


def get_config(model: str = "gfnet-xs"):
  config = default.get_config()
  config.name = f"imagenet-{model}"
  config.precision = "bf16"
  config.eval_every_epochs = 5.0
  config.model.name = model
  config.data.update(name="imagenet2012", batch_size=1024)
  config.data.reading.update(workers=16, threads=1, prefetch=2)  # each holds whole batches
  config.optimizer.update(learning_rate=5e-4, reference_batch_size=512)
  config.checkpoints.update(keep_every_epochs=20.0, every_steps=1000)
  return config
