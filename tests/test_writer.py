"""metrics.jsonl after accidents: what can be read is kept, what cannot is named and dropped."""

import json
import os
import random
from pathlib import Path

import pytest
from helpers import read_lines
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from gfnet_jax.errors import UserError
from gfnet_jax.training.writer import MetricWriter

LINES = [json.dumps({"step": step, "train_loss": 1 / step}).encode() + b"\n" for step in (1, 2, 3)]


def reopen(directory: Path, content: bytes, step: int = 9) -> bytes:
  """What a run that continues after a step leaves of a file."""
  path = directory / "metrics.jsonl"
  path.write_bytes(content)
  MetricWriter(directory, step).close()
  return path.read_bytes()


@pytest.mark.parametrize(
  "damaged",
  [
    *(b"\xff\n", b"\xc3\n", b"\0" * 500 + b"\n", b"\n", b"null\n", b"[1]\n", b"2\n", b"{}\n"),
    json.dumps({"step": 2, "train_loss": 0.5}).encode("utf-16") + b"\n",
    b"\xef\xbb\xbf" + LINES[1],
    LINES[1].replace(b"step", "st\u00e9p".encode("latin-1")),
    LINES[1].replace(b"\n", b"\r\n"),
    LINES[1].replace(b"\n", b" \n"),
    b'{"step": 2, "step": 2}\n',
    *(b'{"step": "2"}\n', b'{"step": true}\n', b'{"step": 2.0}\n', b'{"step": null}\n'),
    *(b'{"step": 2, "x": NaN}\n', b'{"step": 2, "x": "y"}\n', b'{"step": 2, "x": [0.5]}\n'),
    b'{"step": ' + b"9" * 5000 + b"}\n",
    b"[" * 100_000 + b"\n",
    b'{"a":' * 100_000 + b"\n",
    b"x" * 3_000_000 + b"\n",
  ],
)
def test_a_damaged_line_is_named_and_dropped(tmp_path, capsys, damaged):
  assert reopen(tmp_path, LINES[0] + damaged + LINES[2]) == LINES[0] + LINES[2]
  assert capsys.readouterr().out == (
    "warning: line 2 of metrics.jsonl cannot be read, and is dropped\n"
  )


def test_many_damaged_lines_are_one_warning(tmp_path, capsys):
  assert reopen(tmp_path, LINES[0] + b"\xfe\n" * 50) == LINES[0]
  assert capsys.readouterr().out == (
    "warning: line 2, 3, 4, 5, 6, ... of metrics.jsonl cannot be read, and is dropped\n"
  )


@pytest.mark.parametrize("end", [b"", LINES[2][:-1], b'{"step": 3, "tr', b"\xff", b"\0" * 4096])
def test_what_a_kill_leaves_is_no_reason_to_warn(tmp_path, capsys, end):
  assert reopen(tmp_path, LINES[0] + LINES[1] + end) == LINES[0] + LINES[1]
  assert capsys.readouterr().out == ""


def test_later_lines_are_removed(tmp_path):
  assert reopen(tmp_path, b"".join(LINES), step=2) == LINES[0] + LINES[1]


@pytest.mark.parametrize(
  "replace", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/null")]
)
def test_what_is_no_file_is_one_line(tmp_path, replace):
  replace(tmp_path / "performance.jsonl")
  with pytest.raises(UserError, match=r"performance.jsonl is not a file that metrics can be"):
    MetricWriter(tmp_path, 0)


def test_values_that_are_not_finite_are_null(tmp_path):
  with MetricWriter(tmp_path, 0) as writer:
    writer.write("metrics", 1, {"train_loss": float("nan"), "epoch": 0.5})
  assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "train_loss": None, "epoch": 0.5}]
  content = (tmp_path / "metrics.jsonl").read_bytes()
  assert reopen(tmp_path, content) == content


def tags(directory: Path) -> list[str]:
  """The names of the numbers in the only TensorBoard file: records of length, sum, data, sum."""
  [path] = (directory / "tensorboard").iterdir()
  content, found = path.read_bytes(), []
  while content:
    length = int.from_bytes(content[:8], "little")
    data, content = content[12 : 12 + length], content[16 + length :]
    assert masked_crc32c(data)
    found += [value.tag for value in Event.FromString(data).summary.value]
  return found


def test_tensorboard_has_groups(tmp_path):
  with MetricWriter(tmp_path, 0) as writer:
    writer.write("metrics", 1, {"epoch": 1.0, "train_loss": 2.0, "learning_rate": 0.1})
    writer.write("metrics", 1, {"eval_top1": 50.0, "eval_ema_top1": 60.0})
    writer.write("performance", 1, {"memory_gib": 1.0, "eval_images_per_second": 9.0})
  assert tags(tmp_path) == [
    *("train/epoch", "train/loss", "train/learning_rate", "eval/top1", "eval_ema/top1"),
    *("performance/memory_gib", "performance/eval_images_per_second"),
  ]


@pytest.mark.slow
def test_mutated_files_never_end_a_run(tmp_path):
  """What is kept are lines as they were, or other numbers in their places, and nothing else."""
  rng = random.Random(0)
  lines = [
    json.dumps({"step": step, "epoch": step / 7, "train_loss": None, "bad_samples": 0})
    for step in range(1, 20)
  ]
  original = ("\n".join(lines) + "\n").encode()
  for _ in range(1000):
    content = bytearray(original)
    for _ in range(rng.randrange(1, 4)):
      at, kind = rng.randrange(len(content)), rng.randrange(4)
      if kind == 0:
        content[at] ^= 1 << rng.randrange(8)
      elif kind == 1:
        del content[at : at + rng.randrange(1, 200)]
      elif kind == 2:
        content[at:at] = rng.randbytes(rng.randrange(1, 50))
      else:
        content[at] = rng.choice(b'\0\n\r"{}[],:eE-.\xff')
      content = content or bytearray(b"\n")
    kept = reopen(tmp_path, bytes(content))
    assert reopen(tmp_path, kept) == kept
    for line in kept.decode().splitlines():
      values = json.loads(line)
      assert type(values.pop("step")) is int
      assert all(value is None or isinstance(value, int | float) for value in values.values())
