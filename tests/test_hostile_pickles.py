"""Pickles that are damaged or hostile: refused in one line, within bounds, and never run."""

import struct

import pytest
from hostile_files import (
  ORDERED_DICT,
  STORAGE_ID,
  call,
  items,
  long,
  refused,
  tensor,
  text,
  under_a_name,
  write_archive,
)

from gfnet_jax.weights import pickles

torch = pytest.importorskip("torch")


@pytest.fixture
def file(tmp_path):
  return tmp_path / "weights.pth"


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
    *((value + b"}b", "attributes of a ") for value in (text("w"), b"N", b"K\1", b")", b"]")),
    (b"c__main__\nKind\n}b", "attributes of a Global|__main__"),
    (b"(}b", "malformed"),
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
