"""Files of weights that are hostile or unusual, written by hand, and how they are refused."""

import json
import struct

import pytest

from gfnet_jax.errors import UserError
from gfnet_jax.weights.files import read_state_dict

PROTOCOL = b"\x80\x02"


def refused(path, match):
  """Whether a file is refused in one printable line that matches."""
  with pytest.raises(UserError, match=match) as caught:
    read_state_dict(path)
  assert str(caught.value).isprintable()
  assert len(str(caught.value)) < 700


def write_archive(path, instructions):
  """A file as torch.save writes it, with this pickle and a storage "0" of three floats."""
  import torch

  writer = torch._C.PyTorchFileWriter(str(path))
  content = PROTOCOL + instructions + b"."
  for name, record in {"data.pkl": content, "byteorder": b"little", "data/0": bytes(12)}.items():
    writer.write_record(name, record, len(record))
  writer.write_end_of_file()


def text(value):
  content = value.encode()
  return b"X" + struct.pack("<I", len(content)) + content


def call(name, arguments):
  return b"c" + name.replace(".", "\n").encode() + b"\n(" + arguments + b"tR"


def tensor(shape, stride, offset=b"K\0", *, count=b"K\x03"):
  """Instructions that make a tensor; sizes are instructions, too."""
  storage = STORAGE_ID + count + b"tQ"
  hooks = b"ccollections\nOrderedDict\n)R"
  body = storage + offset + b"(" + shape + b"t(" + stride + b"t\x89" + hooks
  return b"ctorch._utils\n_rebuild_tensor_v2\n(" + body + b"tR"


def long(size):
  """An integer of so many bytes."""
  return b"\x8b" + struct.pack("<i", size) + b"\x7f" * size


def under_a_name(instructions):
  return b"}" + text("w") + instructions + b"s"


ORDERED_DICT = b"ccollections\nOrderedDict\nq\x01"  # and puts it into the memo
STORAGE_ID = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")


def items(count):
  """A list in the memo, of pairs that are one and the same."""
  return b"NN\x86q\x02]q\x03(" + b"h\x02" * count + b"e"


def write_safetensors(path, header, data=b""):
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(header)) + header + data)
