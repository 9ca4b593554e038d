"""What PyTorch writes beside weights, or in their place: read as PyTorch reads it, or named."""

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import pathlib

import hypothesis
import numpy as np
import pytest
from hostile_files import refused, tensor, text, under_a_name, write_archive
from hypothesis import strategies as st

from gfnet_jax.weights.files import read_state_dict

torch = pytest.importorskip("torch")

FLOATS = torch.arange(12, dtype=torch.float32).reshape(3, 4)


@pytest.fixture
def file(tmp_path):
  return tmp_path / "weights.pth"


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
    (Mode.FAST, "'v' is a test_torch_objects.Mode, expected a tensor"),
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
