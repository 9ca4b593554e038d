"""Handwritten digits as a TFDS data set, from the scans that scikit-learn ships.

1797 real scans of 8x8 pixels in 17 grey levels (UCI, Optical Recognition of
Handwritten Digits, https://archive.ics.uci.edu/dataset/80). Nothing is downloaded.
"""

import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class Digits(tfds.core.GeneratorBasedBuilder):
  """PNG-encoded grey images, split 80 to 20 with equal shares of every class."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Stratified split with seed 0."}  # noqa: RUF012 (TFDS's name)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      homepage="https://archive.ics.uci.edu/dataset/80",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
          "label": tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager  # nothing to download
    # Only preparing needs scikit-learn, and importing it takes seconds.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
      np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    return {
      split: self._generate_examples(images, labels, sorted(indices.tolist()))
      for split, indices in (("train", train), ("test", test))
    }

  def _generate_examples(
    self, images: np.ndarray, labels: np.ndarray, indices: list[int]
  ) -> Iterator[tuple[int, dict]]:
    for index in indices:
      # Handed over already encoded: TFDS encodes arrays with TensorFlow only.
      png = io.BytesIO()
      Image.fromarray(images[index]).save(png, "PNG")
      png.seek(0)
      yield index, {"image": png, "label": int(labels[index])}
