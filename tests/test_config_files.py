"""Config files and overrides as people mistype them: one line each."""

import os

import pytest

from configs import default
from gfnet_jax.config_files import read_config
from gfnet_jax.errors import UserError

DIGITS = "configs/digits.py"


def message_of(specifier, *overrides) -> str:
  with pytest.raises(UserError) as caught:
    read_config(str(specifier), list(overrides))
  message = str(caught.value)
  assert message.isprintable()
  assert len(message) < 1000
  return message


def test_overrides_are_applied():
  config = read_config(
    DIGITS,
    ["--config.seed=3", "--config.data.name", "x", "--config.model.scan", "--noconfig.model.remat"],
  )
  assert (config.seed, config.data.name, config.model.scan) == (3, "x", True)
  assert read_config(DIGITS, ["--config.model.embed_dims=(1,2)"]).model.embed_dims == (1, 2)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("optimizer.learning_rat", "did you mean optimizer.learning_rate? see configs/digits.py"),
    ("batchsize", "did you mean data.batch_size?"),
    ("modle.depth", "did you mean model.depth?"),
    ("seed.more", "unknown config field seed.more"),
    ("", "unknown config field ; see"),
    ("data..name", "did you mean"),
    ("\x1b[31mred", r"unknown config field \x1b[31mred; see configs/digits.py"),
    ("'quoted\\n'", "unknown config field 'quoted\\n'; see"),
    ("q" * 9999, "qqq ... qqq"),
  ],
)
def test_unknown_fields(name, message):
  assert message in message_of(DIGITS, f"--config.{name}=1")


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("--config.model=3", "model is a section of the config; set one of its fields: model."),
    ("--config.data.reading=None", "data.reading is a section"),
    ("--config.seed=many", "config.seed=many"),
    ("--config.seed=1.5", "config.seed=1.5"),
    ("--config.seed=" + "9" * 5000, "config.seed="),
    ("--config.seed", "seed"),
    ("--config.model.scan=maybe", "config.model.scan=maybe"),
    ("--config.model.embed_dims=(1,", "config.model.embed_dims"),
    ("--config.model.embed_dims[0]=1", "see configs/digits.py"),
    ("--config.num_epochs=", "config.num_epochs="),
    ("--cnfig.seed=1", "unknown flag --cnfig.seed"),
    ("seed=1", "unexpected argument 'seed=1'"),
  ],
)
def test_values_of_other_types(override, message):
  assert message in message_of(DIGITS, override)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"root:x:0:0:root:/root:/bin/sh\n", "is not a Python file (invalid syntax"),
    (b"\x7fELF\x02\x01\x01\0\0\0", "is not a Python file ("),
    (b"name = '\xff'", "is not a Python file ("),
    (b"(" * 100_000, "is not a Python file ("),
    (b"x = " + b"-" * 100_000 + b"1", "is not a Python file ("),
    (b"seed = 3\n", "has no function get_config()"),
    (b"get_config = 3\n", "has no function get_config()"),
    (b"import nothing_of_this_name\n", "line 1: ModuleNotFoundError: No module named"),
    (b"\n\nraise SystemExit\n", "line 3: SystemExit: SystemExit"),
    (b"def get_config():\n  return 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
    (b"def get_config():\n  return get_config()\n", "line 2: RecursionError: "),
    (b"def get_config():\n  raise OSError('a\\nb\\x1b')\n", r"OSError: a b\x1b"),
    (b"def get_config(name):\n  pass\n", "TypeError: get_config() missing 1 required"),
    (b"def get_config():\n  return {'seed': 1}\n", "returns dict, expected a ml_collections"),
    (b"def get_config():\n  pass\n", "returns NoneType, expected"),
    (b"#" * 2_000_000, "is larger than 1048576 bytes: no config"),
  ],
)
def test_files_that_are_no_configs(tmp_path, content, message):
  path = tmp_path / "config.py"
  path.write_bytes(content)
  assert message in message_of(path)


def test_places_where_no_config_is(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  assert "pipe not found" in message_of(tmp_path / "pipe")
  assert "/dev/zero not found" in message_of("/dev/zero")
  assert "is a directory" in message_of(tmp_path)
  assert "is a directory" in message_of("")
  assert "configs/none.py not found" in message_of("configs/none.py")
  assert "takes no argument, found 'x'" in message_of(f"{DIGITS}:x")
  assert "config configs/transfer.py:x: unknown data set 'x', expected one of" in message_of(
    "configs/transfer.py:x"
  )


def test_the_ready_made_configs_are_found_from_elsewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert read_config(DIGITS, []).name == "digits"
  assert default.get_config().name == "default"
