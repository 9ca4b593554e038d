"""Images with masks: sources, joint transforms, samples of whole images, and bad data."""

import io
import pickle
import random

import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gfnet_jax.data.pipeline import Reading, eval_batches, train_batches
from gfnet_jax.data.samples import LABELLED, Share, check_form
from gfnet_jax.data.segmentation.distortion import distort
from gfnet_jax.data.segmentation.samples import MASKED, MaskedEvalSamples, load_masked, rounded_up
from gfnet_jax.data.segmentation.transforms import (
  IGNORED,
  MEAN_COLOUR,
  MaskedEvalTransform,
  MaskedTrainTransform,
  fitted_size,
)
from gfnet_jax.data.sources.fingerprint import fingerprint
from gfnet_jax.data.sources.open import check_classes, in_class_order, open_source
from gfnet_jax.data.sources.records import MaskedRecord
from gfnet_jax.data.sources.shapes import CLASSES, SPLITS, ShapesSource, open_shapes
from gfnet_jax.errors import UserError

SIZES = ((40, 60), (60, 40), (33, 57), (40, 60))  # (height, width)


def write_ade20k(root, split="training", names=("wall", "sky", "tree"), sizes=SIZES):
  """Writes random images and masks in the layout of ADE20K: 0 is no class, 1 the first one."""
  rng = np.random.default_rng(0)
  for folder in ("images", "annotations"):
    (root / folder / split).mkdir(parents=True, exist_ok=True)
  table = [f"{i}\t0.1\t5\t5\t{name}" for i, name in enumerate(names, 1)]
  (root / "objectInfo150.txt").write_text(
    "\n".join(["Idx\tRatio\tTrain\tVal\tName", *table]) + "\n"
  )
  for i, size in enumerate(sizes):
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(root / f"images/{split}/image_{i}.jpg")
    values = rng.integers(0, len(names) + 1, size).astype(np.uint8)
    Image.fromarray(values).save(root / f"annotations/{split}/image_{i}.png")
  return root


def opened(root, split="training", *, reduce_zero_label=True):
  data = dict(source="masks", name=str(root), reduce_zero_label=reduce_zero_label)
  return open_source(ml_collections.ConfigDict(data), split)


def labels_of(source, index):
  return load_masked(source, index, lambda image, labels: (None, np.array(labels)))["label"]


def as_png(array):
  file = io.BytesIO()
  Image.fromarray(array).save(file, "PNG")
  return file.getvalue()


# --- Sources ----------------------------------------------------------------------------


def test_ade20ks_folders(tmp_path):
  source = opened(write_ade20k(tmp_path))
  assert (len(source), source.class_names) == (4, ["wall", "sky", "tree"])
  assert source.sizes() == list(SIZES)
  values = np.array(Image.open(tmp_path / "annotations/training/image_2.png"))
  expected = np.array([IGNORED, 0, 1, 2], np.uint8)[values]
  np.testing.assert_array_equal(labels_of(source, 2), expected)
  assert fingerprint(source)["images"] == 4 and fingerprint(source)["names"]
  with pytest.raises(UserError, match="the data set has 3 classes, the model has 150"):
    check_classes(source, 150)


def test_without_reduce_zero_label_0_is_the_first_class_and_255_is_none(tmp_path):
  write_ade20k(tmp_path)
  # As some editors write it, with a byte order mark.
  (tmp_path / "classes.txt").write_text("none\r\nwall\r\nsky\r\ntree\r\n\r\n", "utf-8-sig")
  values = np.array(Image.open(tmp_path / "annotations/training/image_1.png"))
  values[:7] = 255
  palette = Image.fromarray(values)
  palette.putpalette(list(range(256)) * 3)
  palette.save(tmp_path / "annotations/training/image_1.png")
  source = opened(tmp_path, reduce_zero_label=False)
  assert source.class_names == ["none", "wall", "sky", "tree"]
  np.testing.assert_array_equal(labels_of(source, 1), values)


def broken(change, message, match):
  return pytest.param(change, match, id=message)


@pytest.mark.parametrize(
  ("change", "match"),
  [
    broken(
      lambda root: Image.new("L", (40, 60), 1).save(root / "annotations/training/image_0.png"),
      "another size",
      r"^the mask of .*image_0.jpg has 40x60 pixels, its image 60x40 \(width x height\), expected",
    ),
    broken(
      lambda root: Image.new("L", (60, 40), 9).save(root / "annotations/training/image_0.png"),
      "a class beyond the names",
      "image_0.jpg holds the value 9, expected 1 to 3 for the 3 classes, or 255 for none; correct",
    ),
    broken(
      lambda root: Image.new("RGB", (60, 40)).save(root / "annotations/training/image_0.png"),
      "colours",
      "image_0.jpg is of mode RGB, expected a grey image or one with a palette",
    ),
    broken(
      lambda root: (root / "annotations/training/image_0.png").unlink(),
      "no mask",
      r"image_0.jpg has no mask, expected .*annotations/training/image_0.png; add it or remove",
    ),
    broken(
      lambda root: (root / "objectInfo150.txt").unlink(),
      "no names",
      "holds neither classes.txt nor objectInfo150.txt, expected the name of every class",
    ),
    broken(
      lambda root: (root / "classes.txt").write_text("a\nb\na\n"),
      "a name twice",
      "classes.txt holds 3 names, 2 of them different, expected 1 to 254 different ones",
    ),
    broken(
      lambda root: (root / "images").rename(root / "pictures"),
      "no images",
      r"cannot read .*images/training \(No such file or directory\); expected images/SPLIT and",
    ),
    broken(
      lambda root: [path.unlink() for path in (root / "images/training").iterdir()],
      "empty",
      "split 'training' of .* is empty",
    ),
  ],
)
def test_bad_data_is_one_line(tmp_path, change, match):
  change(write_ade20k(tmp_path))
  with pytest.raises(UserError, match=match) as found:
    labels_of(opened(tmp_path), 0)
  assert "\n" not in str(found.value)


def test_a_directory_that_is_not_there(tmp_path):
  with pytest.raises(UserError, match=r"directory .*gone not found, expected one with images/ and"):
    opened(tmp_path / "gone")


def test_a_damaged_mask_is_replaced_in_training_and_ends_an_evaluation(tmp_path, caplog):
  root = write_ade20k(tmp_path)
  (root / "annotations/training/image_3.png").write_bytes(b"no image")
  source = opened(root)
  transform = MaskedTrainTransform(image_size=32)
  options = dict(seed=0, share=Share(4), first_batch=0, num_batches=1, reading=Reading(0, 0))
  [batch] = train_batches(source, transform, form=MASKED, **options)
  assert batch["bad"].sum() == 1 and "the mask of" in caplog.text
  assert (batch["image"].shape, batch["label"].shape) == ((4, 32, 32, 3), (4, 32, 32))
  evaluation = eval_batches(
    source, MaskedEvalTransform(32, 32), share=Share(1), reading=Reading(0, 0), form=MASKED
  )
  with pytest.raises(
    UserError, match=r"evaluation image 3: the mask of .* is not a readable image"
  ):
    list(evaluation)


def test_the_classes_of_masks_have_one_order(tmp_path):
  source = opened(write_ade20k(tmp_path))
  assert in_class_order(source, ["wall", "sky", "tree"]) is source
  assert in_class_order(source, ["a", "b", "c"]) is source  # which `check_same_classes` refuses
  with pytest.raises(UserError, match="classes that the weights were trained with in another ord"):
    in_class_order(source, ["sky", "wall", "tree"])


def test_masks_are_for_networks_with_a_decoder():
  source = ShapesSource("test")
  check_form(source, MASKED)
  with pytest.raises(UserError, match="have masks, which are for a network that segments them"):
    check_form(source, LABELLED)
  with pytest.raises(UserError, match="have no masks, which are for a network that classifies"):
    check_form([], MASKED)


def test_shapes_have_no_other_name():
  with pytest.raises(UserError, match=r"data\.name is 'my-masks', expected 'shapes'"):
    open_shapes(ml_collections.ConfigDict(dict(name="my-masks")), "test")


def test_shapes_are_drawn_from_their_index_alone():
  source, other = ShapesSource("train"), pickle.loads(pickle.dumps(ShapesSource("train")))
  assert len(source) == SPLITS["train"] and source[3] == other[3] != source[4]
  sizes, seen = source.sizes(), set()
  for index in range(20):
    labels = labels_of(source, index)
    assert labels.shape == sizes[index]
    seen |= {*np.unique(labels).tolist()}
  assert seen == set(range(len(CLASSES)))
  assert ShapesSource("test")[3] != source[3]
  with pytest.raises(UserError, match="the split is 'val', expected train or test"):
    ShapesSource("val")


# --- Transforms -------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("size", "fitted", "aligned"),
  [  # by hand: the shorter side becomes 512, the longer one at most 2048, rounded up to 32
    ((512, 683), (512, 683), (512, 704)),
    ((1024, 768), (683, 512), (704, 512)),
    ((256, 256), (512, 512), (512, 512)),
    ((100, 1000), (205, 2048), (224, 2048)),
  ],
)
def test_sizes_of_the_published_test_transform(size, fitted, aligned):
  assert fitted_size(*size, 512) == fitted
  transform = MaskedEvalTransform(512, 32)
  assert transform.input_size(*size) == aligned
  if max(aligned) < 1000:
    assert transform(Image.new("RGB", size[::-1])).shape == (*aligned, 3)


def encoded(height, width):
  """An image that encodes its own mask: red is the column, green the row; and both as labels."""
  rows, columns = np.mgrid[:height, :width]
  pixels = np.stack([2 * columns, 2 * rows, 0 * rows], -1).astype(np.uint8)
  return Image.fromarray(pixels), rows, columns


@settings(max_examples=60)
@given(
  size=st.tuples(st.integers(40, 120), st.integers(40, 120)),
  image_size=st.tuples(st.integers(24, 64), st.integers(24, 64)),
  scale=st.floats(0.5, 2.0),
  flip=st.sampled_from([0.0, 1.0]),
  seed=st.integers(0, 2**32),
)
def test_crops_and_flips_keep_image_and_mask_aligned(size, image_size, scale, flip, seed):
  """Every labelled pixel shows, within half a pixel and its rounding, the place its label names."""
  image, rows, columns = encoded(*size)
  options = dict(image_size=image_size, scale=(scale, scale), flip=flip, distortion=0.0)
  transform = MaskedTrainTransform(**options)
  found = []
  for places in (rows, columns):
    labels = Image.fromarray(places.astype(np.uint8))
    found.append(transform(image, labels, random.Random(seed)))
  (pixels, row), (same, column) = found
  np.testing.assert_array_equal(pixels, same)
  known = row != IGNORED
  assert known.any() and pixels.shape == (*image_size, 3)
  factor = min(image_size) * scale / min(size)
  allowed = 2 + 2 * max(1, 1 / factor)  # of 2 per pixel: one pixel, and the filter's at the border
  assert np.abs(pixels[known][:, 0] - 2.0 * column[known]).max() <= allowed
  assert np.abs(pixels[known][:, 1] - 2.0 * row[known]).max() <= allowed
  np.testing.assert_array_equal(pixels[~known], np.broadcast_to(MEAN_COLOUR, pixels[~known].shape))
  step = np.diff(column.astype(int), axis=1)[known[:, 1:]]
  assert (step <= 0).all() if flip else (step >= 0).all()


def test_without_a_change_of_size_the_crop_is_bit_equal():
  image, rows, _ = encoded(64, 64)
  transform = MaskedTrainTransform(image_size=64, scale=(1, 1), flip=1.0, distortion=0.0)
  pixels, labels = transform(image, Image.fromarray(rows.astype(np.uint8)), random.Random(0))
  np.testing.assert_array_equal(pixels, np.array(image)[:, ::-1])
  np.testing.assert_array_equal(labels, rows[:, ::-1])


def test_a_crop_that_is_nearly_all_of_one_class_is_drawn_again():
  """Of two equal halves: of all crops about one in six has three quarters of neither."""
  labels = np.zeros((64, 64), np.uint8)
  labels[:, 32:] = 1
  image, labels = Image.new("RGB", (64, 64)), Image.fromarray(labels)

  def balanced(max_class_share):
    options = dict(image_size=16, scale=(4, 4), max_class_share=max_class_share, distortion=0.0)
    transform = MaskedTrainTransform(**options)
    crops = [transform(image, labels, random.Random(seed))[1] for seed in range(200)]
    return np.mean([0.25 < crop.mean() < 0.75 for crop in crops])

  assert balanced(0.75) > 0.75  # 1 - (1 - 7 / 49) ** 11 = 0.82
  assert balanced(1.0) < 0.65  # 7 of the 15 crops with both classes


def test_the_same_seed_makes_the_same_sample():
  image, rows, _ = encoded(70, 90)
  labels = Image.fromarray(rows.astype(np.uint8))
  transform = MaskedTrainTransform(image_size=48)
  first, again, other = (transform(image, labels, random.Random(seed)) for seed in (1, 1, 2))
  for one, two in zip(first, again, strict=True):
    np.testing.assert_array_equal(one, two)
  assert (first[0] != other[0]).any()


def test_distortion_moves_no_pixel_and_changes_each_channel_as_it_should():
  flat = Image.new("RGB", (5, 4), (200, 100, 50))
  found = [np.array(distort(flat, 1.0, random.Random(seed))) for seed in range(50)]
  assert all((one == one[0, 0]).all() for one in found)
  assert len({tuple(one[0, 0]) for one in found}) > 40
  assert distort(flat, 0.0, random.Random(0)) is flat
  grey = Image.new("RGB", (1, 1), (100, 100, 100))
  values = [distort(grey, 1.0, random.Random(seed)).getpixel((0, 0)) for seed in range(300)]
  assert all(len(set(value)) == 1 for value in values), "grey has no hue and no saturation"
  brightest = (100 + 32) * 1.5  # by hand: brightness, then contrast
  darkest = (100 - 32) * 0.5
  assert darkest - 1 <= min(values)[0] < darkest + 20
  assert brightest - 25 < max(values)[0] <= brightest


def test_a_scale_that_is_none():
  with pytest.raises(UserError, match=r"segmentation.scale is \(2, 1\), expected the smallest and"):
    MaskedTrainTransform(image_size=32, scale=(2, 1))


# --- Whole images -----------------------------------------------------------------------


class Sized:
  """Images of these sizes, whose masks hold their own index everywhere."""

  def __init__(self, sizes):
    self._sizes, self.first_value = sizes, 0
    self.class_names = [str(i) for i in range(len(sizes))]

  def __len__(self):
    return len(self._sizes)

  def sizes(self):
    return self._sizes

  def __getitem__(self, index):
    size = self._sizes[index]
    image = as_png(np.full((*size, 3), index, np.uint8))
    return MaskedRecord(image, as_png(np.full(size, index, np.uint8)), f"image {index}")


@settings(max_examples=25)
@given(
  sizes=st.lists(st.tuples(st.integers(8, 90), st.integers(8, 90)), min_size=1, max_size=12),
  batch_size=st.integers(1, 4),
  processes=st.sampled_from([1, 2]),
)
def test_every_pixel_of_every_image_comes_once(sizes, batch_size, processes):
  batch_size *= processes
  transform, pixels, images = MaskedEvalTransform(16, 8), np.zeros(len(sizes), int), []
  shapes = []
  for process in range(processes):
    share = Share(batch_size, process, processes)
    samples = MaskedEvalSamples(Sized(sizes), transform, share)
    shapes.append([])
    for start in range(0, len(samples), share.rows):
      batch = [samples[i] for i in range(start, start + share.rows)]
      assert len({(one["image"].shape, one["label"].shape) for one in batch}) == 1
      shapes[-1].append(batch[0]["image"].shape)
      for one in batch:
        labels = one["label"][one["label"] != IGNORED]
        assert one["counted"] == (labels.size > 0)
        if one["counted"]:
          [index] = set(labels.tolist())
          height, width = one["size"]
          assert (height, width) == sizes[index] and labels.size == height * width
          assert (one["label"][:height, :width] == index).all()
          assert one["image"].shape == (*transform.input_size(height, width), 3)
          pixels[index] += labels.size
          images.append(index)
  assert sorted(images) == list(range(len(sizes)))
  assert pixels.tolist() == [height * width for height, width in sizes]
  assert all(found == shapes[0] for found in shapes), "all processes compute the same programs"


@given(side=st.integers(1, 5000))
def test_labels_are_padded_by_less_than_a_quarter(side):
  padded = rounded_up(side)
  assert side <= padded < 1.25 * side + 1
  assert rounded_up(padded) == padded
