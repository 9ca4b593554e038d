"""What the processes of a run must have in common, and how a mistake of one reaches all."""

import json

import pytest
from helpers import finish

from configs.digits import get_config
from gfnet_jax import distributed
from gfnet_jax.errors import UserError
from gfnet_jax.training import agreement
from gfnet_jax.training.agreement import check_agreement, describe_program


def with_others(monkeypatch, *others: dict) -> None:
  """Lets `exchange` return this process's text, then those of others."""
  texts = [json.dumps(facts) for facts in others]
  monkeypatch.setattr(agreement, "exchange", lambda text: [text, *texts])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"seed": 7}, "seed is 7 there and 0 in process 0"),
    ({"model.image_size": 9}, "model.image_size is 9 there and 8 in process 0"),
    ({"mixing.mixup_alpha": 0.3}, "mixing.mixup_alpha is 0.3 there and 0.0 in process 0"),
    ({"data.train_split": "test"}, "data.train_split is test there and train in process 0"),
    ({"on_nonfinite": "skip"}, "on_nonfinite is skip there and stop in process 0"),
    ({"new": 1}, "new is 1 there and not there in process 0"),
    ({"model.mixer": "a\x1b[2J"}, r"model.mixer is a\x1b[2J there and None in process 0"),
    ({"the code of gfnet_jax": "0.0.9 (ab)"}, "the code of gfnet_jax is 0.0.9 (ab) there and 0."),
    ({"the version of jax": "0.1"}, "the version of jax is 0.1 there and 0."),
    ({"the number of local devices": 3}, "the number of local devices is 3 there and 8 in"),
  ],
)
def test_what_differs_is_named(monkeypatch, change, message):
  facts = describe_program(get_config())
  with_others(monkeypatch, facts, facts | change)
  with pytest.raises(UserError, match=r"^process 2 does not do what process 0 does: ") as error:
    check_agreement(facts)
  assert message in str(error.value)
  assert str(error.value).endswith("start all with the same code and the same command")


def test_all_differences_are_named_up_to_a_number(monkeypatch):
  facts = {f"field {i}": 0 for i in range(10)}
  with_others(monkeypatch, facts | {"field 3": 1, "field 7": 1})
  with pytest.raises(UserError, match=r"field 3 is 1 .*, field 7 is 1 there"):
    check_agreement(facts)
  with_others(monkeypatch, dict.fromkeys(facts, 1))
  with pytest.raises(UserError, match="field 7 is 1 there and 0 in process 0, and 2 more;"):
    check_agreement(facts)


def test_what_belongs_to_a_machine_may_differ(monkeypatch):
  here, there = get_config(), get_config()
  there.data.update(name="/far/digits", data_dir="/far", verify_crc=True)
  there.data.reading.update(threads=9, prefetch=1, workers=2)
  here.augment.flip = there.augment.flip = float("nan")  # which is no number's equal
  with_others(monkeypatch, describe_program(there))
  check_agreement(describe_program(here))


def test_other_code_has_another_description(monkeypatch, tmp_path):
  before = agreement._code()
  (tmp_path / "__init__.py").write_text("a = 1")
  monkeypatch.setattr(agreement.gfnet_jax, "__file__", str(tmp_path / "__init__.py"))
  first = agreement._code()
  (tmp_path / "__init__.py").write_text("a = 2")
  assert len({before, first, agreement._code()}) == 3


def mistaken():
  raise UserError("no such directory")


def test_a_mistake_of_one_process_is_raised_in_all(monkeypatch):
  assert distributed.together(lambda: 3) == 3
  monkeypatch.setattr(distributed, "exchange", lambda text: [text, "", "no such file"])
  with pytest.raises(UserError, match=r"^process 2: no such file$"):
    distributed.together(lambda: 3)
  with pytest.raises(UserError, match=r"^no such directory$"):
    distributed.together(mistaken)


TINY = ("--config.num_epochs=6", "--config.model.embed_dim=8", "--config.model.depth=1")


@pytest.mark.slow
@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--config.seed=1", "process 1 does not do what process 0 does: seed is 1 there and 0 in"),
    ("--config.num_epochs=9", "num_epochs is 9.0 there and 6.0 in process 0"),
    ("--config.data.train_split=train[:50%]", "data.train_split is train[:50%] there"),
    ("--config.data.data_dir=/proc/none", "cannot write the data set to /proc/none"),
    ("--config.init_checkpoint=none", "init_checkpoint is none there and"),
    ("--workdir=elsewhere", "lock.json of process 0 is not seen here"),
  ],
)
def test_real_processes_that_do_not_agree(tmp_path, start, flag, message):
  """Both end with one line and 2, before anything is computed."""
  flag = flag.replace("elsewhere", str(tmp_path / "elsewhere"))
  run = start("train.py", "--workdir", tmp_path / "run", *TINY, processes=2, last=(flag,))
  for code, _, errors in finish(run):
    assert code == 2
    assert errors.splitlines()[-1].startswith("error: ")
    assert message in errors.splitlines()[-1]
  assert not list(tmp_path.glob("*/checkpoints"))


@pytest.mark.slow
def test_different_numbers_of_devices_are_one_line(tmp_path, start):
  flags = ("--workdir", tmp_path / "run", *TINY)
  run = start("train.py", *flags, processes=2, devices=(1, 2))
  for code, _, errors in finish(run):
    assert code == 2
    assert "the number of local devices is 2 there and 1 in process 0" in errors.splitlines()[-1]
