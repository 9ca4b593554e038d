"""Your own photos: one folder per class, from twenty images up.

  python train.py --config configs/photos.py --config.data.name=DIR

DIR/cats and DIR/dogs hold the images of the classes cats and dogs, for example. A fifth of each
class is held out for validation, unless DIR/train and DIR/val hold the folders of the classes.
What is None below is chosen from the number of images, and printed. The network is a small one at
64 pixels, which begins with random weights. Trained ones usually help where images are few; by how
much was not measured here:

  --config.init_checkpoint=gfnet-xs   downloads the official weights; or a .pth file, or a
                                      checkpoint: the network is that of the weights, at 128 pixels
  --config.freeze_trunk=True          with such weights: trains the head alone, with less work

All of it, with real output: docs/photos.md.
"""

from ml_collections import config_dict

from configs import default


def get_config():
  config = default.get_config()
  config.automatic = True  # what is None is chosen, see gfnet_jax/training/choices.py
  config.name = "photos-{data}"
  config.report = True
  config.log_every_steps = 10
  config.num_epochs = config_dict.placeholder(float)
  config.eval_every_epochs = config_dict.placeholder(float)
  config.model.update(num_classes=0)  # 0: counted
  config.model.name = config_dict.placeholder(str)
  config.model.image_size = config_dict.placeholder(int)
  config.model.drop_path_rate = 0.0
  config.optimizer.update(schedule="cosine", warmup_learning_rate=0.0, final_learning_rate=0.0)
  config.optimizer.learning_rate = config_dict.placeholder(float)
  config.optimizer.warmup_epochs = config_dict.placeholder(float)
  config.data.update(source="photos", eval_split="val", fast_decode=True)
  config.data.max_bad_fraction = 0.1  # of few images, one is many
  config.data.batch_size = config_dict.placeholder(int)
  config.data.eval_batch_size = config_dict.placeholder(int)
  config.data.reading.update(threads=4, prefetch=4)
  config.data.reading.workers = config_dict.placeholder(int)
  config.augment.scale = (0.35, 1.0)  # the part of an image that is seen
  config.augment.auto_augment = "rand-m5-mstd0.5-inc1"
  config.mixing.update(mixup_alpha=0.2, cutmix_alpha=0.0)
  config.mixing.group_size = config_dict.placeholder(int)
  return config
