"""Hostile, unusual and foreign files of weights: read right, or refused in one line, in bounds."""

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import gzip
import io
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile

import hypothesis
import numpy as np
import pytest
from helpers import ROOT
from hypothesis import strategies as st

from gfnet_jax.errors import UserError
from gfnet_jax.weights import pickles, sizes
from gfnet_jax.weights.files import read_state_dict

torch = pytest.importorskip("torch")

PROTOCOL = b"\x80\x02"
FLOATS = torch.arange(12, dtype=torch.float32).reshape(3, 4)


@pytest.fixture
def file(tmp_path):
  return tmp_path / "weights.pth"


def refused(path, match):
  """Whether a file is refused in one printable line that matches."""
  with pytest.raises(UserError, match=match) as caught:
    read_state_dict(path)
  assert str(caught.value).isprintable()
  assert len(str(caught.value)) < 700


def write_archive(path, instructions):
  """A file as torch.save writes it, with this pickle and a storage "0" of three floats."""
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
  storage = (
    b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + count + b"tQ"
  )
  hooks = b"ccollections\nOrderedDict\n)R"
  body = storage + offset + b"(" + shape + b"t(" + stride + b"t\x89" + hooks
  return b"ctorch._utils\n_rebuild_tensor_v2\n(" + body + b"tR"


def long(size):
  """An integer of so many bytes."""
  return b"\x8b" + struct.pack("<i", size) + b"\x7f" * size


def under_a_name(instructions):
  return b"}" + text("w") + instructions + b"s"


# --- pickles -----------------------------------------------------------------------------


@pytest.mark.parametrize(
  "instructions",
  [
    b"]" * 50_000 + b"a" * 49_999,
    b")" + b"2\x86" * 10_000,  # each pair holds the one before twice: 2 ** 10000 leaves
    b"}" + b")" + b"\x85" * 50_000 + b"Ns",  # as a key, to be hashed
    b"}" + b"}N" * 1000 + b"s" * 1000,
    b"(" * 20_000 + b"t" * 20_000,
    long(1 << 20),
    b"]" + b"2" * 1000 + b"a" * 1000,  # a list in itself
    call("__builtin__.bytearray", b"\x8a\x05" + (8 * 10**9).to_bytes(5, "little")),
    call("__builtin__.range", long(10)),
  ],
)
def test_deep_and_large_pickles_are_refused(file, instructions):
  write_archive(file, instructions)
  refused(file, "expected a dict of weights|holds no 'model'|malformed")


@pytest.mark.parametrize(
  ("instructions", "match"),
  [
    (b"L" + b"9" * 10_000 + b"L\n", "malformed"),
    (b"Np18446744073709551615\n", "malformed"),
    (b")" + b"2\x86" * 100 + b"2\x93", "malformed"),  # a name that takes 2 ** 100 characters
    (b"\x8e" + struct.pack("<Q", 1 << 62), "malformed"),
    (b"h\x05", "malformed"),
    (b"(", "holds a Opaque|expected a dict"),
    (b"0", "malformed"),
    (b"}(" + text("w") + b"Ns", "malformed"),  # values set in a mark
    (b"](a", "malformed"),
    (b"(\x85", "malformed"),
    (b"(q\0", "malformed"),
    (b"(2", "malformed"),
    (b"\x95" + b"\xff" * 8, "malformed"),
    (b"ios\nsystem\n", "another protocol"),
    (b"Vps\nR", "malformed"),
  ],
)
def test_malformed_pickles_are_refused(file, instructions, match):
  write_archive(file, instructions)
  refused(file, match)


def test_pickles_without_end_are_cut_at_a_number_of_instructions(file, monkeypatch):
  monkeypatch.setattr(pickles, "INSTRUCTIONS", 1000)
  write_archive(file, b"]" * 997 + b"0" * 2)  # PROTO, STOP
  refused(file, "holds a list")
  write_archive(file, b"]" * 997 + b"0" * 3)
  refused(file, "more than 1000 instructions; save the state dict alone")


ORDERED_DICT = b"ccollections\nOrderedDict\nq\x01"  # and puts it into the memo
STORAGE_ID = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")


def items(count):
  """A list in the memo, of pairs that are one and the same."""
  return b"NN\x86q\x02]q\x03(" + b"h\x02" * count + b"e"


@pytest.mark.parametrize(
  "instructions",
  [
    items(400) + ORDERED_DICT + b"h\x01h\x03\x85R" * 3,  # OrderedDict(list)
    b"(" + b"N" * 400 + b"tq\x03" + ORDERED_DICT + b"h\x01h\x03R" * 3,
    items(400) + ORDERED_DICT + b"h\x03h\x03h\x03\x87R",
    text("datetime") + b"q\x01" + text("a" * 100) + b"q\x02\x93" + b"h\x01h\x02\x93" * 9,
    b"}" + text("k" * 8000) + b"q\x01Ns" + text("k" * 8000) + b"q\x02Ns" + b"h\x02Ns",
    b"N" * 2 + b"}q\x01(" + b"".join(text(str(i)) + b"N" for i in range(400)) + b"u"
    b"ccopyreg\nf\n(" + b"h\x01" * 3 + b"tR",
  ],
)
def test_large_values_are_not_handed_over_again_and_again(file, monkeypatch, instructions):
  monkeypatch.setattr(pickles, "HANDED_OVER", 1000)
  write_archive(file, instructions)
  refused(file, "hands over more than 1000 items; save the state dict alone")


@pytest.mark.parametrize(
  "instructions",
  [
    text("datetime") + text("a" * 200) + b"\x93",
    text("a." * 100) + text("b") + b"\x93",
    b"cdatetime\n" + b"a" * 192 + b"\n",
    STORAGE_ID + b"K\x03NNtQ",  # two views
    STORAGE_ID + b"K\x03" + b"]tQ",
    STORAGE_ID.replace(text("0"), text("0" * 201)) + b"K\x03tQ",
    STORAGE_ID + long(1 << 20) + b"tQ",
  ],
)
def test_names_and_storages_of_absurd_size_are_refused(file, instructions):
  write_archive(file, instructions)
  refused(file, "malformed")


@pytest.mark.parametrize(
  ("instructions", "match"),
  [
    (tensor(b"K\x04", b"K\x01"), "malformed"),
    (tensor(b"K\x03", b"K\x01", b"K\x01"), "malformed"),
    (tensor(b"K\x03", b"J\xff\xff\xff\xff"), "malformed"),
    (tensor(b"K\x02", long(1000)), "malformed"),
    (tensor(b"K\x02", b"K\x01", long(1000)), "malformed"),
    (tensor(b"K\x03", b"K\x01", count=b"K\x04"), "malformed"),
    (tensor(b"K\x03", b"K\x01", count=long(1000)), "malformed"),
    (tensor(b"G" + bytes(8), b"K\x01"), "malformed"),
    (tensor(long(1 << 20) * 2, b"K\0K\0"), "holds 1e.30 numbers"),
    (tensor(b"J\xff\xff\xff\x7f", b"K\0"), "holds 2.15e.09 numbers"),
    (tensor(b"K\0" + b"J\0\0\0\x40" * 30, b"K\0" * 31), "holds 1e.30 numbers|numbers, expected"),
    (tensor(b"K\x01" * 40, b"K\x01" * 40), "a tensor of 40 dimensions"),
  ],
)
def test_impossible_tensors_are_refused(file, instructions, match):
  write_archive(file, under_a_name(instructions))
  refused(file, match)


def test_many_views_of_a_small_storage_are_refused_together(file):
  view = tensor(b"J\0\0\0\x04", b"K\0")  # 2 ** 26 numbers
  write_archive(file, b"}" + b"".join(text(name) + view + b"s" for name in "abcd"))
  refused(file, "holds 2.68e.08 numbers, expected at most 134217728")


@pytest.mark.parametrize(
  "name",
  [
    "nt.system",
    "builtins.eval",
    "torch.load",
    "torch.hub.load",
    "subprocess.Popen",
    "torch.storage._load_from_bytes",
    "pathlib.os.system",
    "numpy.load",
    "evil\x1b[2J.name",
  ],
)
def test_names_that_may_run_code_are_refused(file, name):
  module, _, attribute = name.rpartition(".")
  write_archive(file, text(module) + text(attribute) + b"\x93)R")
  refused(file, "is refused: its pickle asks for .* nothing was run")


# --- tensors that are unusual, but no weights, beside the witness of PyTorch ----------------


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
  "value",
  [
    torch.nn.Parameter(FLOATS),
    torch.nn.Buffer(FLOATS[1:, 2:]),
    FLOATS.T,
    FLOATS[:, :1].expand(3, 7),
    FLOATS.as_strided((2, 2), (3, 2), 1),
    torch.tensor(2.5),
    torch.zeros(0, 5),
    FLOATS.to(torch.bfloat16)[::2],
    FLOATS.double().flip(0),
  ],
)
def test_every_layout_of_floats_is_read_as_pytorch_reads_it(file, value, zipped):
  torch.save({"w": value, "v": FLOATS}, file, _use_new_zipfile_serialization=zipped)
  expected = torch.load(file, weights_only=True)
  actual = read_state_dict(file)
  assert list(actual) == list(expected)
  for key, array in actual.items():
    np.testing.assert_array_equal(array, expected[key].detach().float().numpy(), strict=True)
    assert array.flags.owndata and array.flags.writeable and array.flags.c_contiguous


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
  ("value", "match"),
  [
    (lambda: torch.complex(FLOATS, FLOATS).conj().imag, "w is a view of negated values"),
    (lambda: torch.complex(FLOATS, FLOATS), "w is torch.complex64"),
    (lambda: FLOATS.to(torch.float8_e5m2), "w is torch.float8_e5m2"),
    (lambda: FLOATS.to(torch.uint16), "w is torch.uint16"),
    (lambda: FLOATS > 1, "w is torch.bool"),
    (lambda: torch.zeros(2, device="meta"), r"w is a tensor without values \(meta\)"),
    (lambda: FLOATS.to_sparse_csr(), "w is a sparse tensor"),
    (lambda: torch.quantize_per_tensor(FLOATS, 0.1, 0, torch.quint8), "w is a quantized tensor"),
    (lambda: torch.nested.nested_tensor([FLOATS[0], FLOATS[1, :2]]), "w is a nested tensor"),
    (lambda: torch.zeros([1] * 64), "a tensor of 64 dimensions"),
    (lambda: torch.zeros(1).expand(10**12), "holds 1e.12 numbers"),
    (lambda: torch.zeros(10**12, 0), "holds 1e.12 numbers"),
  ],
)
@pytest.mark.filterwarnings("ignore")  # of PyTorch's prototypes
def test_other_tensors_are_named_and_not_called_damaged(file, value, match, zipped):
  torch.save({"w": value(), "v": FLOATS}, file, _use_new_zipfile_serialization=zipped)
  refused(file, rf"cannot be used: (?!.*get the file again).*{match}")


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_saves_beside_its_weights_is_passed_over(file, zipped):
  beside = dict(
    accuracy=np.float64(81.5),
    step=np.int32(7),
    flag=np.bool_(True),
    history=np.arange(3),
    date=datetime.datetime(2021, 7, 1),
    took=datetime.timedelta(hours=1),
    path=pathlib.PurePosixPath("/x"),
    lr=decimal.Decimal("0.1"),
    sets=[{1, 2}, frozenset({3})],
    counts=collections.Counter("aab"),
    defaults=collections.defaultdict(list, a=[1]),
    raw=[b"abc", bytearray(b"d"), 1j, slice(1, 2)],
    torch=[torch.float16, torch.Size([1, 2]), torch.device("cpu")],
    args=argparse.Namespace(path=pathlib.PurePosixPath("/y"), nested=argparse.Namespace(x=1)),
    keys={1: FLOATS, (2, 3): None, None: 1},
  )
  torch.save(dict(model={"w": FLOATS}, **beside), file, _use_new_zipfile_serialization=zipped)
  np.testing.assert_array_equal(read_state_dict(file)["w"], FLOATS.numpy(), strict=True)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_protocol_that_pytorch_may_write_is_read(file, protocol, zipped):
  content = dict(model={"w": FLOATS}, args=argparse.Namespace(x=1))
  torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
  np.testing.assert_array_equal(read_state_dict(file)["w"], FLOATS.numpy())


@pytest.mark.parametrize(
  "name",
  [
    "omegaconf.dictconfig.DictConfig",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "mmengine.config.config.ConfigDict",
    "yacs.config.CfgNode",
  ],
)
def test_configs_of_other_projects_need_not_be_installed(file, name):
  module, _, attribute = name.rpartition(".")
  config = text(module) + text(attribute) + b"\x93)\x81}" + text("lr") + b"K\x01sb"
  model = under_a_name(tensor(b"K\x03", b"K\x01"))
  write_archive(file, b"}" + text("config") + config + b"s" + text("state_dict") + model + b"s")
  np.testing.assert_array_equal(read_state_dict(file)["w"], np.zeros(3, np.float32))


class Mode(enum.Enum):
  FAST = 1


class Option(enum.Flag):
  A = enum.auto()
  B = enum.auto()


@dataclasses.dataclass
class Settings:
  mode: Mode
  more: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Slots:
  x: int


class Callback(dict):
  pass


Pair = collections.namedtuple("Pair", "a b")


class HistoryBuffer:
  """Pickled as MMEngine's: with its methods, and with arrays."""

  def __init__(self):
    self.history = np.arange(3.0)
    self.methods = collections.OrderedDict(mean=HistoryBuffer.mean, current=self.mean)

  def mean(self):
    return self.history.mean()


def scheduler():
  """A scheduler with its optimizer, as a whole."""
  optimizer = torch.optim.AdamW([torch.nn.Parameter(FLOATS)])
  result = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3)
  result.annealing = result._annealing_cos  # as PyTorch 1 kept it
  return result


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
  "beside",
  [
    HistoryBuffer,
    pytest.param(scheduler, marks=pytest.mark.slow),  # PyTorch imports much for it
    lambda: functools.partial(torch.nn.LayerNorm, eps=1e-6),
    lambda: functools.partial(HistoryBuffer().mean),
    lambda: [Mode.FAST, Option.A | Option.B, Settings(Mode.FAST, [Slots(1)]), Pair(1, 2)],
    lambda: {Callback: Callback(best=FLOATS), HistoryBuffer: Callback},
    lambda: [collections.ChainMap({}), fractions.Fraction(1, 3), range(3), torch.nn.GELU()],
    lambda: [np.random.default_rng(0), np.dtype("<M8[s]"), np.ma.ones(2), datetime.UTC],
  ],
)
def test_objects_of_any_class_are_passed_over(file, beside, protocol):
  content = {"state_dict": {"w": FLOATS}, "beside": beside()}
  torch.save(content, file, pickle_protocol=protocol)
  np.testing.assert_array_equal(read_state_dict(file)["w"], FLOATS.numpy(), strict=True)


@pytest.mark.parametrize(
  ("value", "match"),
  [
    (fractions.Fraction(1, 3), "'v' is a fractions.Fraction, expected a tensor"),
    (Mode.FAST, "'v' is a test_hostile_weights.Mode, expected a tensor"),
    (np.ones(3), r"'v' is a numpy._core.multiarray._reconstruct, expected a tensor"),
    (HistoryBuffer().mean, "'v' is a builtins.getattr, expected a tensor"),
  ],
)
def test_objects_in_place_of_a_weight_are_named(file, value, match):
  torch.save(dict(model={"w": FLOATS, "v": value}), file, pickle_protocol=4)
  refused(file, match)


@pytest.mark.parametrize("place", [lambda model: model, lambda model: {"model": model, "epoch": 3}])
def test_a_whole_model_is_told_from_its_state_dict(file, place):
  torch.save(place(torch.nn.Linear(2, 2)), file)
  refused(file, r"holds a torch\.nn\.modules\.linear\.Linear.*save model\.state_dict\(\) alone")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
contents = st.recursive(
  scalars, lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner)
)


@hypothesis.given(contents, st.sampled_from([2, 4]))
@hypothesis.settings(max_examples=20)
def test_plain_values_of_any_shape_are_no_hindrance(tmp_path_factory, beside, protocol):
  file = tmp_path_factory.mktemp("plain") / "weights.pth"
  torch.save(dict(model={"w": FLOATS}, beside=beside), file, pickle_protocol=protocol)
  np.testing.assert_array_equal(read_state_dict(file)["w"], FLOATS.numpy())


# --- safetensors -------------------------------------------------------------------------


def write_safetensors(path, header, data=b""):
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(header)) + header + data)


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
