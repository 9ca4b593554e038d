"""ImageNet-1k at 384 pixels, fine-tuned from a checkpoint at 224, the official recipe.

Paper: arXiv:2107.00645, table 4. Hardware of the published runs: 8 GPUs, 64 images each.
Top-1 on the validation images, published, not measured here:

  gfnet-xs 80.6   gfnet-s 81.7   gfnet-b 82.1

Position embedding and filters are resized by the official rule. Commands:

  python convert_torch_weights.py gfnet-xs runs/gfnet-xs
  python train.py --config configs/imagenet_384.py:gfnet-xs --config.init_checkpoint=runs/gfnet-xs
"""

from configs import imagenet


def get_config(model: str = "gfnet-xs"):
  config = imagenet.get_config(model)
  config.name = f"imagenet-384-{model}"
  config.num_epochs = 30.0
  config.eval_every_epochs = 1.0
  config.model.image_size = 384
  config.model.drop_path_rate = 0.0  # the official script fine-tunes in inference mode
  config.data.update(batch_size=512, eval_batch_size=512)
  config.mixing.group_size = 64
  config.optimizer.update(learning_rate=5e-6, final_learning_rate=5e-6, weight_decay=1e-8)
  config.checkpoints.keep_every_epochs = 0.0
  return config
