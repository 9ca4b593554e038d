"""Hostile and foreign files of weights: refused in one line, within bounds."""

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from helpers import ROOT
from hostile_files import (
  ORDERED_DICT,
  PROTOCOL,
  STORAGE_ID,
  items,
  long,
  refused,
  tensor,
  text,
  under_a_name,
  write_archive,
  write_safetensors,
)

from gfnet_jax.weights import sizes

torch = pytest.importorskip("torch")

FLOATS = torch.arange(12, dtype=torch.float32).reshape(3, 4)


@pytest.fixture
def file(tmp_path):
  return tmp_path / "weights.pth"


# --- safetensors -------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("header", "match"),
  [
    (b'{"w":' + b"[" * 2_000_000, "header is damaged"),
    (b'{"w":' * 500_000, "header is damaged"),
    (b'{"w":[' + b"[]," * 50_000 + b"[]]}", "header is damaged"),
    (b'{"w":' + b"9" * 100_000 + b"}", "header is damaged"),
    (b'{"w":{"dtype":"F32","shape":[1e400],"data_offsets":[0,4]}}', "header is damaged"),
    (b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', "header is damaged"),
    (b"{" + b" " * (1 << 22) + b"}", "header is damaged"),
    (b'{"\xff":1}', "header is damaged"),
    (dict(w=dict(dtype="F32", shape=[0, 1 << 62, 1 << 62], data_offsets=[0, 0])), "numbers"),
    (dict(w=dict(dtype="F32", shape=[1] * 33, data_offsets=[0, 4])), "33 dimensions"),
    (dict(w=dict(dtype="F16", shape=[1 << 62] * 32, data_offsets=[0, 4])), "numbers"),
    (dict(w=dict(dtype="I64", shape=[1 << 40], data_offsets=[0, 8 << 40])), "numbers"),
    ({"\x1b[31m\n": dict(dtype="F32", shape=[2], data_offsets=[0, 4])}, r"\\x1b\[31m\\n"),
    ({"\ud800": dict(dtype="F32", shape=[2], data_offsets=[0, 4])}, "inconsistent"),
    ({"n" * 200_000: dict(dtype="F32", shape=[2], data_offsets=[0, 4])}, "inconsistent"),
    (dict(w=dict(dtype="F" * 200_000, shape=[1], data_offsets=[0, 4])), "is of type FFF"),
  ],
)
def test_hostile_safetensors_headers_are_refused(tmp_path, header, match):
  path = tmp_path / "weights.safetensors"
  write_safetensors(path, header, bytes(4))
  refused(path, f"cannot be used: .*{match}")


@pytest.mark.parametrize(
  ("dtype", "shape"),
  [("U16", [2]), ("BOOL", [4]), ("F8_E5M2", [4]), ("F4", [8]), ("F8_E8M0", [2, 2]), ("C64", [0])],
)
def test_types_of_safetensors_that_are_no_weights_are_named(tmp_path, dtype, shape):
  path = tmp_path / "weights.safetensors"
  size = 0 if 0 in shape else 4
  write_safetensors(
    path, dict(w=dict(dtype=dtype, shape=shape, data_offsets=[0, size])), bytes(size)
  )
  refused(path, rf"cannot be used: w is of type {dtype} in place of a weight, .* convert it")


# --- other kinds of files, all of them intact ---------------------------------------------


def zipped(**entries):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    for name, content in entries.items():
      archive.writestr(name, content)
  return buffer.getvalue()


def saved(save, *arguments, **keywords):
  buffer = io.BytesIO()
  save(*arguments, buffer, **keywords)
  return buffer.getvalue()


def arrays():
  buffer = io.BytesIO()
  np.savez_compressed(buffer, w=np.ones(3))
  return buffer.getvalue()


@pytest.mark.parametrize(
  ("content", "match"),
  [
    (lambda: gzip.compress(b"weights"), "compressed with gzip.*; unpack it"),
    (lambda: b"BZh9" + bytes(range(100)), "compressed with bzip2"),
    (lambda: b"\xfd7zXZ\x00" + bytes(99), "compressed with xz"),
    (lambda: zipped(**{"x/gfnet.pth.tar": b"1", "readme": b"2"}), "a zip archive around x/gfnet"),
    (lambda: zipped(**{"\x1b[2J\n.pt": b"1"}), r"a zip archive around \\x1b\[2J\\n"),
    (arrays, r"NumPy arrays \(.npz\)"),
    (lambda: zipped(**{"word/a.xml": b"1", "[Content_Types].xml": b""}), "an office document"),
    (lambda: zipped(**{"config.json": b"{}", "model.weights.h5": b""}), "a Keras model"),
    (lambda: b"\x93NUMPY\x01\0" + bytes(99), "a NumPy array"),
    (lambda: b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    (lambda: b"GGUF" + bytes(99), "GGUF"),
    (lambda: b"\x08\x07\x12\x07pytorch\x1a" + bytes(9), "an ONNX model"),
    (lambda: bytes(257) + b"ustar\x0000" + bytes(248), "a tar archive"),
    (lambda: b"version https://git-lfs.github.com/spec/v1\noid x\n", "pointer of Git LFS"),
    (lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "a text file"),
    (lambda: b'{"message": "rate limit"}', "JSON, but no index"),
    (lambda: "nicht gefunden: ä".encode(), "a text file"),
    (lambda: pickle.dumps({"w": [1.0]}), "a pickle, but none of torch.save"),
    (lambda: pickle.dumps([1], protocol=2), "a pickle, but none of torch.save"),
  ],
)
def test_other_kinds_of_files_are_named(file, content, match):
  file.write_bytes(content())
  refused(file, f"cannot be used: it is .*{match}")


def test_torchscript_is_named(file):
  with pytest.warns(DeprecationWarning):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(file))
  refused(file, r"cannot be used: it is TorchScript.*torch\.jit\.load\(file\)\.state_dict\(\)")


def test_pipes_and_huge_files_are_refused_at_once(tmp_path):
  os.mkfifo(tmp_path / "pipe.pth")
  refused(tmp_path / "pipe.pth", "is a pipe or device")
  with (tmp_path / "sparse.safetensors").open("wb") as sparse:
    sparse.truncate(sizes.FILE_LIMIT + 1)
  refused(tmp_path / "sparse.safetensors", f"has {sizes.FILE_LIMIT + 1} bytes, expected at most")
  refused(tmp_path / ("x" * 1000), "File name too long")


def test_numbers_of_the_other_byte_order_are_refused(file):
  writer = torch._C.PyTorchFileWriter(str(file))
  for name, record in {"data.pkl": PROTOCOL + b"}.", "byteorder": b"big"}.items():
    writer.write_record(name, record, len(record))
  writer.write_end_of_file()
  refused(file, "numbers are big-endian, expected little-endian")


# --- archives ----------------------------------------------------------------------------


def test_a_deflated_bomb_is_not_unpacked(file, monkeypatch):
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("archive/data.pkl", bytes(10**7))
  monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda *_: pytest.fail("unpacked"))
  refused(file, "zip archive is damaged")


def test_entries_that_overlap_are_not_read(file, monkeypatch):
  torch.save({"w": FLOATS}, file)
  content = bytearray(file.read_bytes())
  first = content.index(b"PK\x01\x02")
  second = content.index(b"PK\x01\x02", first + 4)
  content[second + 42 : second + 46] = content[first + 42 : first + 46]  # the offset of the entry
  file.write_bytes(content)
  monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda *_: pytest.fail("read"))
  refused(file, "zip archive is damaged")


def test_a_directory_of_absurd_size_is_not_read(file, monkeypatch):
  torch.save({"w": FLOATS}, file)
  content = file.read_bytes()
  monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("opened"))
  file.write_bytes(content[:-58] + struct.pack("<Q", 1 << 30) + content[-50:])  # in zip64
  refused(file, "its directory has 1073741824 bytes")
  file.write_bytes(content + b"a comment")
  refused(file, "zip archive is damaged")


# --- in a process of its own, with limits ---------------------------------------------------

MEASURE = """
import resource, sys
from gfnet_jax.weights.files import UserError, read_state_dict
before = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (before + 10**9, -1))
resource.setrlimit(resource.RLIMIT_CPU, (int(resource.getrusage(0).ru_utime) + 11, -1))
for path in sys.argv[1:]:
  try:
    read_state_dict(path)
  except UserError as error:
    assert str(error).isprintable()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_the_most_expensive_files_stay_within_limits(tmp_path):
  expensive = {
    "lists.pth": b"]" * 999_990,
    "dicts.pth": b"}" * 999_990,
    "long.pth": long(30_000_000),
    "tuple.pth": b")" + b"\x85" * 999_000,
    "pairs.pth": b")" + b"2\x86" * 400_000,
    "keys.pth": b"}"
    + b"".join(b"\x8a\x08" + struct.pack("<q", i << 20) + b"Ns" for i in range(300_000)),
    "names.pth": b"}" + b"".join(text(str(i)) + b"Ns" for i in range(300_000)),
    "stride.pth": under_a_name(tensor(b"J\0\0\0\x08", b"K\0")),
    "pairs_again.pth": items(200_000) + ORDERED_DICT + b"h\x01h\x03\x85R" * 200_000,
    "pairs_in_steps.pth": items(4_000) + ORDERED_DICT + b"h\x01h\x03\x85R" * 300_000,
    "globals.pth": text("datetime")
    + b"q\x01"
    + text("\U00020000" * 180)
    + b"q\x02"
    + b"h\x01h\x02\x93" * 300_000,
    "short_globals.pth": text("a") + b"q\x01" + b"h\x01h\x01\x93" * 330_000,
    "same_key.pth": b"}"
    + (text("k" * 9_000_000) + b"q\x01Ns" + text("k" * 9_000_000) + b"q\x02Ns")
    + b"h\x02Nsh\x01Ns" * 100_000,
    "storages.pth": STORAGE_ID + b"K\x03" + b"N" * 500_000 + b"tq\x01Q" + b"h\x01Q" * 200_000,
    "same_storage.pth": STORAGE_ID + b"K\x03tq\x01" + b"h\x01Q" * 300_000,
    "calls.pth": b"ca\nb\nq\x01)R" + b"h\x01)R" * 300_000,
    "dims.pth": under_a_name(tensor(long(8_000_000) * 3, b"K\0" * 3)),
  }
  for name, instructions in expensive.items():
    write_archive(tmp_path / name, instructions)
  headers = {"lists": b"[]," * 1_300_000 + b"[]", "objects": b"{}," * 1_300_000 + b"{}"}
  for name, values in headers.items():
    write_safetensors(tmp_path / f"{name}.safetensors", b'{"w":[' + values + b"]}")
  for path in sorted(tmp_path.iterdir()):
    command = [sys.executable, "-c", MEASURE, str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, ""), path.name
