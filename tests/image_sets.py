"""Small image data sets in every format that sources read, written independently of them."""

import struct
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


def write_folder(root: Path, count: int, split: str = "train") -> list[Path]:
  """Writes smooth random JPEGs of 64x48 into root/split/CLASS/; returns the paths in order."""
  rng = np.random.default_rng(0)
  for name in CLASSES:
    (root / split / name).mkdir(parents=True, exist_ok=True)
  for i in range(count):
    pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC)
    image.save(root / split / CLASSES[i % len(CLASSES)] / f"image_{i:05d}.JPEG", quality=90)
  return sorted((root / split).glob("*/*"))


def example(image: bytes, label: int, **extra: bytes) -> bytes:
  """A serialized tf.train.Example as TFDS stores it."""
  proto = tf_example_pb2.Example()
  proto.features.feature["image"].bytes_list.value.append(image)
  proto.features.feature["label"].int64_list.value.append(label)
  for name, value in extra.items():
    proto.features.feature[name].bytes_list.value.append(value)
  return proto.SerializeToString()


def write_tfds(
  directory: Path,
  suffix: str,
  shards: list[list[bytes]],
  write_shard,
  *,
  split: str = "train",
  features: dict | None = None,
) -> Path:
  """Writes shards of serialized examples and the files that TFDS describes them with."""
  features = features or {
    "image": tfds.features.Image(encoding_format="jpeg"),
    "label": tfds.features.ClassLabel(names=list(CLASSES)),
    "id": tfds.features.Text(),
  }
  directory.mkdir(parents=True)
  template = tfds.core.ShardedFileTemplate(
    data_dir=directory, dataset_name="pictures", split=split, filetype_suffix=suffix
  )
  for i, records in enumerate(shards):
    name = f"pictures-{split}.{suffix}-{i:05d}-of-{len(shards):05d}"
    write_shard(directory / name, records)
  tfds.folder_dataset.write_metadata(
    data_dir=str(directory),
    features=tfds.features.FeaturesDict(features),
    version="1.0.0",
    split_infos=[
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[len(records) for records in shards],
        num_bytes=0,
        filename_template=template,
      )
    ],
    filename_template=template,
    check_data=False,
  )
  return directory


def write_tfrecord_file(path: Path, records: list[bytes]) -> None:
  """The format's own rules: length, its masked CRC-32C, data, its masked CRC-32C."""
  with path.open("wb") as file:
    for data in records:
      length = struct.pack("<Q", len(data))
      file.write(length + struct.pack("<I", masked(crc32c(length))))
      file.write(data + struct.pack("<I", masked(crc32c(data))))


def masked(crc: int) -> int:
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32


def crc32c(data: bytes) -> int:
  """Bit by bit would do, too; the reflected Castagnoli polynomial is 0x82F63B78."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
  return crc ^ 0xFFFFFFFF


def _table_entry(crc: int) -> int:
  for _ in range(8):
    crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
  return crc


_TABLE = [_table_entry(byte) for byte in range(256)]
