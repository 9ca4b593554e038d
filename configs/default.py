"""Every field of a config with its meaning and a neutral value; the others start from here.

Not to be trained with as it is: it names no model and no data set.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
  config = ConfigDict()
  # Of the default work directory, runs/<name>; {data} is the last part of data.name.
  config.name = "default"
  config.seed = 0  # of the initial weights, the order, the augmentation and drop path
  config.num_epochs = 300.0
  config.log_every_steps = 50
  config.eval_every_epochs = 1.0  # each evaluation is followed by a checkpoint
  config.precision = "default"  # highest, default, bf16 or float64 (with JAX_ENABLE_X64=1)
  config.init_checkpoint = (
    ""  # start from the weights of this checkpoint; the head stays if it fits
  )
  config.ema_decay = 0.0  # of averaged weights, evaluated beside the others; 0: none
  config.on_nonfinite = "stop"  # or "skip" the update, or "rollback" past the offending batches

  # None is off: an older run, which has no such field, continues without a word.
  config.freeze_trunk = config_dict.placeholder(bool)  # trains the head of init_checkpoint alone
  config.report = config_dict.placeholder(bool)  # at the end, into WORKDIR/report: what is mistaken

  # Arguments of gfnet_jax.create_model.
  config.model = ConfigDict(dict(name="", image_size=224, num_classes=1000))
  for name, kind in (
    *(("patch_size", int), ("embed_dim", int), ("depth", int)),  # of gfnet-ti, -xs, -s, -b
    *(("embed_dims", tuple), ("depths", tuple)),  # of gfnet-h-ti, -h-s, -h-b
  ):
    config.model[name] = config_dict.placeholder(kind)  # None: the variant's own
  config.model.mixer = config_dict.placeholder(str)  # of the tokens, see gfnet_jax/models/mixers.py
  config.model.decoder = config_dict.placeholder(str)  # semantic-fpn: every pixel gets a class
  config.model.decoder_dims = config_dict.placeholder(tuple)  # channels of its pyramid and head
  config.model.drop_path_rate = config_dict.placeholder(float)
  config.model.backend = "auto"  # of the filter: auto, fft, separable, dense or fused
  config.model.filter_precision = config_dict.placeholder(str)  # high (None), highest or default
  config.model.remat = False  # less memory for more time
  config.model.scan = False  # compiles faster; parameters are stacked (docs/speed.md)

  config.optimizer = ConfigDict(
    dict(
      learning_rate=1e-3,  # the peak
      reference_batch_size=0,  # for which it holds, scaled linearly to the batch; 0: as it is
      # Per epoch, as published; or per step: "cosine", shifted by the warm-up, or "poly", the power
      # 0.9 of what is left of the run.
      schedule="official",
      warmup_epochs=5.0,
      warmup_learning_rate=1e-6,  # at the first step
      final_learning_rate=1e-5,  # at the end of the cosine
      beta1=0.9,
      beta2=0.999,
      eps=1e-8,
      weight_decay=0.05,  # of kernels and filters
      clip_norm=1.0,  # of all gradients together; 0 does not clip
      accumulate_steps=1,  # parts of a batch whose gradients are computed one after the other
    )
  )
  config.optimizer.scale_all_rates = config_dict.placeholder(bool)  # first and last like the peak
  config.data = ConfigDict(
    dict(
      source="tfds",  # tfds, tfrecord, folder, photos or domains; with a decoder masks or shapes
      name="",  # of a TFDS data set, or a directory that holds the data
      data_dir="",  # of all TFDS data sets; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets
      train_split="train",
      eval_split="validation",
      batch_size=1024,  # over all devices of all processes
      eval_batch_size=1024,
      repeats=1,  # repeated augmentation: times that an epoch shows an image of a part of the data
      max_bad_fraction=1e-4,  # of unreadable images, above which the run stops
      fast_decode=False,  # faster decoding and resizing, not bit-equal to the official way
      verify_crc=False,  # of every record, for tfrecord
      reading=dict(threads=16, prefetch=16, workers=0),  # per process; workers are processes
    )
  )
  # What the best checkpoint is tested on at the end, into WORKDIR/test.json; None: nothing.
  config.data.test_split = config_dict.placeholder(str)
  # Of domains, see gfnet_jax/data/sources/domains.py.
  config.data.held_out = config_dict.placeholder(str)  # the one that is tested on
  config.data.domains = config_dict.placeholder(tuple)  # their names; None: all that are there
  config.data.folders = config_dict.placeholder(tuple)  # in each, of training and validation
  config.data.reduce_zero_label = config_dict.placeholder(bool)  # of masks: 0 is no class
  # Arguments of gfnet_jax.data.transforms.TrainTransform, explained there, as is fast_decode.
  config.augment = ConfigDict(
    dict(
      crop="random_resized",
      padding=4,
      flip=0.5,
      interpolation="bicubic",
      auto_augment="rand-m9-mstd0.5-inc1",
      color_jitter=0.0,
    )
  )
  # With a decoder, arguments of gfnet_jax.data.segmentation.transforms.MaskedTrainTransform in its
  # place, which takes augment.flip as well. None: the published recipe's.
  config.segmentation = ConfigDict()
  config.segmentation.scale = config_dict.placeholder(tuple)
  config.segmentation.max_class_share = config_dict.placeholder(float)
  config.segmentation.distortion = config_dict.placeholder(float)
  # Arguments of gfnet_jax.data.on_device.mixing.Mixing, explained there.
  config.mixing = ConfigDict(
    dict(
      mixup_alpha=0.8,
      cutmix_alpha=1.0,
      prob=1.0,
      switch_prob=0.5,
      mode="batch",
      group_size=128,
      smoothing=0.1,
      new_box=False,
    )
  )
  config.mixing.cutmix_minmax = config_dict.placeholder(tuple)
  config.distillation = ConfigDict(
    dict(
      teacher="",  # a checkpoint of this project with the same classes; empty: none
      kind="soft",  # soft or hard
      alpha=0.5,  # weight of the teacher's part of the loss
      temperature=1.0,
    )
  )
  config.erasing = ConfigDict(  # of random boxes, after the other transforms
    dict(probability=0.0, max_count=1, mode="pixel")  # mode: pixel, rand or const
  )
  config.checkpoints = ConfigDict(
    dict(
      keep_last=2,  # the best one is kept besides
      keep_every_epochs=0.0,  # also written and kept: those at a multiple of this; 0: none
      every_steps=0,  # besides those after evaluations; 0: none
    )
  )
  config.sharding = "replicated"  # or "fsdp": parameters and optimiser state over the devices
  config.filters_every_steps = 0  # pictures of the filters in TensorBoard; 0: none
  config.trackers = ConfigDict(dict(wandb=False, mlflow=False))  # who else gets the metrics
  config.stall_timeout = 1800.0  # seconds without progress after which the run ends; 0: never
  config.profile = ConfigDict(dict(first_step=0, last_step=0))  # into WORKDIR/profile; 0: none
  return config
