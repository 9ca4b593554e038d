"""Folders of classes: listings that expire, names that are integers, what is passed over."""

import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfnet_jax.data.sources import file_times, listing
from gfnet_jax.data.sources.cache import cache_file
from gfnet_jax.data.sources.fingerprint import fingerprint
from gfnet_jax.data.sources.folder import FolderSource
from gfnet_jax.data.sources.listing import class_order, find_evidence, list_images
from gfnet_jax.data.sources.open import Relabelled, in_class_order
from gfnet_jax.data.sources.records import Record
from gfnet_jax.errors import UserError

SECOND = 10**9


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(root, *files):
  for file in files:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_bytes(b"image")
  return root


@pytest.fixture
def root(tmp_path):
  return write(tmp_path / "images", "a/0.jpg", "a/deep/1.jpg", "b/0.jpg", "c/0.jpg")


def paths(source):
  return [os.path.relpath(source[i].name, source._directory) for i in range(len(source))]


# How folders' times look on mounts that do not keep them: (mtime of the i-th folder, device).
MOUNTS = {
  "epoch": lambda i: (0, 7),
  "constant": lambda i: (1_700_000_000 * SECOND, 7),
  "rclone": lambda i: (946_684_800 * SECOND, 7),  # 2000-01-01
  "before the epoch": lambda i: (-(10 + i) * SECOND, 7),
  "far future": lambda i: ((2**33 + i) * SECOND, 7),
  "beyond 64 bits": lambda i: ((2**50 + i) * SECOND, 7),
  "one time for the classes": lambda i: ((1_600_000_000 + min(i, 1)) * SECOND, 7),
  "markers of an object store": lambda i: ((1_600_000_000 + i) * SECOND, 9),
}


@pytest.fixture(params=list(MOUNTS))
def frozen_times(request, root, tmp_path, monkeypatch):
  """Whatever happens in the folders, their times stay those of a mount."""
  table = tmp_path / "mountinfo"
  table.write_text(
    "25 1 0:7 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
    "60 25 0:9 / /mnt rw - fuse.gcsfuse bucket rw\nnonsense\n"
  )
  monkeypatch.setattr(file_times, "MOUNTS", table)
  original, numbers = type(root).stat, {}

  def stat(path, **options):
    found = original(path, **options)
    if not path.is_relative_to(root):
      return found
    time, device = MOUNTS[request.param](numbers.setdefault(path, len(numbers)))
    fields = dict(st_mtime_ns=time, st_ctime_ns=time, st_size=0, st_ino=1, st_dev=device)
    return SimpleNamespace(st_mode=found.st_mode, **fields)

  monkeypatch.setattr(type(root), "stat", stat)


def test_times_that_stay_the_same_keep_no_listing_alive(frozen_times, root):
  assert len(FolderSource(str(root), "")) == 4
  write(root, "b/1.jpg")
  assert paths(FolderSource(str(root), ""))[2:4] == ["b/0.jpg", "b/1.jpg"]
  write(root, "a/deep/2.jpg")
  assert len(FolderSource(str(root), "")) == 6
  (root / "b/1.jpg").rename(root / "b/9.jpg")
  assert "b/9.jpg" in paths(FolderSource(str(root), ""))
  write(root, "d/0.jpg")
  assert FolderSource(str(root), "").class_names == ["a", "b", "c", "d"]
  (root / "c").rename(root / "e")
  assert FolderSource(str(root), "").class_names == ["a", "b", "d", "e"]
  (root / "a/deep/1.jpg").unlink()
  (root / "a/deep/2.jpg").unlink()
  assert paths(FolderSource(str(root), ""))[:2] == ["a/0.jpg", "b/0.jpg"]


def test_a_change_that_keeps_the_time_is_seen(root):
  """As rsync and tar make it: the modification time is set back."""
  before = (root / "b").stat()
  FolderSource(str(root), "")
  write(root, "b/1.jpg")
  os.utime(root / "b", ns=(before.st_atime_ns, before.st_mtime_ns))
  assert len(FolderSource(str(root), "")) == 5


def test_old_and_different_times_are_believed_without_a_look(root, monkeypatch):
  for i, folder in enumerate((root, root / "a", root / "a/deep", root / "b", root / "c")):
    os.utime(folder, ns=(0, (1_600_000_000 + i) * SECOND))
  found = list_images(root)
  monkeypatch.setattr(listing, "_read", None)
  assert find_evidence(root, found) == "no folder has changed"


@pytest.mark.parametrize("seconds", [1_600_000_000, 0, 2**33], ids=["copied", "zeroed", "future"])
def test_restored_times_are_believed_with_those_of_the_change(root, monkeypatch, seconds):
  """As tar, rsync and cp leave them: whole seconds, the same for several folders."""
  original, numbers = type(root).stat, {}

  def stat(path, **options):
    found = original(path, **options)
    number = numbers.setdefault(path, len(numbers))  # the clock's steps are long
    times = dict(st_mtime_ns=seconds * SECOND, st_ctime_ns=found.st_ctime_ns - 5 * SECOND + number)
    others = ("st_mode", "st_dev", "st_size", "st_ino")
    return SimpleNamespace(**times, **{name: getattr(found, name) for name in others})

  monkeypatch.setattr(type(root), "stat", stat)
  found = list_images(root)
  assert find_evidence(root, found) == "no folder has changed"
  before = (root / "b").stat().st_ctime_ns
  write(root, "b/1.jpg")
  while (root / "b").stat().st_ctime_ns == before:
    (root / "b").chmod(0o755)
  assert find_evidence(root, found) is None


def test_a_listing_by_names_is_said_to_be(root, capsys):
  for folder in ("", "a", "b"):
    os.utime(root / folder, (0, 0))
  for _ in range(2):
    FolderSource(str(root), "")
  assert (
    "the times of its folders tell nothing, but the names in all of them are as before, so "
    in (capsys.readouterr().out)
  )


@pytest.mark.parametrize("link", ["z", "a/link", "a/deep/x.jpg"])
def test_a_link_that_leads_somewhere_again_is_followed(tmp_path, root, link):
  """As when a disk is mounted: no folder's time changes."""
  (root / link).symlink_to(tmp_path / "disk/pictures")
  for i, folder in enumerate((root, root / "a", root / "a/deep", root / "b", root / "c")):
    os.utime(folder, ns=(0, (1_600_000_000 + i) * SECOND))
  before = len(FolderSource(str(root), ""))
  assert find_evidence(root, list_images(root)) == "no folder has changed"
  write(tmp_path / "disk/pictures", "0.jpg", "1.jpg", "2.jpg")
  assert len(FolderSource(str(root), "")) == before + 3 - link.endswith(".jpg")


def test_a_listing_from_the_cache_is_said_to_be(root, capsys):
  FolderSource(str(root), "")
  assert capsys.readouterr().out == ""
  FolderSource(str(root), "")
  (line,) = capsys.readouterr().out.splitlines()
  assert line.endswith(f"the listing comes from the cache, {cache_file('listing', root)}")
  assert cache_file("listing", root).is_file()


@pytest.mark.parametrize(
  ("names", "expected"),
  [
    (["10", "9", "0", "1"], ["0", "1", "9", "10"]),
    (["007", "10", "08"], ["007", "08", "10"]),
    (["-1", "-10", "2", "1"], ["-10", "-1", "1", "2"]),
    (["1", "01", "0"], ["0", "01", "1"]),
    (["9" * 250, "10"], ["10", "9" * 250]),
    (["10", "9", "x"], ["10", "9", "x"]),
    (["10", "9", "1.5"], ["1.5", "10", "9"]),
    (["10", "9", "٣"], ["10", "9", "٣"]),  # a digit, but of no class
    (["10", "9", "1_0"], ["10", "1_0", "9"]),
    (["10", "9", ""], ["", "10", "9"]),
  ],
)
def test_integers_are_ordered_as_such_if_all_names_are(names, expected):
  assert class_order(names) == expected


@given(st.lists(st.integers(-(10**6), 10**6), unique=True, min_size=1))
def test_the_order_of_integers(numbers):
  assert class_order(map(str, numbers)) == [str(number) for number in sorted(numbers)]


@given(st.lists(st.text(min_size=1), unique=True, min_size=1))
def test_the_order_of_text_is_pythons(names):
  names.append("a name")
  assert class_order(names) == sorted(names)


def test_folders_of_integers(tmp_path, capsys):
  root = write(tmp_path / "v2", *(f"{i}/{i}.jpg" for i in range(12)), ".hidden/x.jpg")
  for _ in range(2):  # from the cache as well
    source = FolderSource(str(root), "")
    assert source.class_names == [str(i) for i in range(12)]
    for i in range(12):
      assert Path(source[i].name).name == f"{source[i].label}.jpg"
    assert "all classes are named by integers and ordered as such: 0, 1, 2, ..., 11\n" in (
      capsys.readouterr().out
    )
  # The images come in the order of torchvision, as always.
  assert paths(source)[:4] == ["0/0.jpg", "1/1.jpg", "10/10.jpg", "11/11.jpg"]


class Labelled:
  def __init__(self, class_names, labels):
    self.class_names, self.labels = class_names, labels

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    return Record(b"", self.labels[index], str(index))


def test_the_same_classes_in_another_order_are_relabelled():
  source = Labelled(["0", "1", "2", "10"], [3, 0, 2, 1, 7])
  found = in_class_order(source, ["0", "1", "10", "2"])
  assert found.class_names == ["0", "1", "10", "2"]
  assert [found[i].label for i in range(5)] == [2, 0, 3, 1, 7]  # 7 is nobody's, and stays
  assert len(found) == 5


@given(st.permutations(list("abcdef")), st.permutations(list("abcdef")))
def test_a_relabelled_record_keeps_the_name_of_its_class(names, others):
  source = Labelled(names, list(range(6)))
  found = in_class_order(source, others)
  assert isinstance(found, Relabelled) == (names != others)
  for i in range(6):
    assert found.class_names[found[i].label] == source.class_names[source[i].label]


def test_relabelled_records_keep_their_names(tmp_path):
  source = FolderSource(str(write(tmp_path / "v2", "2/0.jpg", "10/0.jpg", "10/1.jpg")), "")
  found = pickle.loads(pickle.dumps(in_class_order(source, ["10", "2"])))
  assert isinstance(found, Relabelled)
  assert fingerprint(found) == fingerprint(source)
  assert found.record_names() == [b"10/0.jpg", b"10/1.jpg", b"2/0.jpg"]
  assert fingerprint(in_class_order(Labelled(["a", "b"], [0]), ["b", "a"]))["names"] is None


@pytest.mark.parametrize("names", [["0", "1"], ["0", "1", "3"], ["0", "1", "1"], []])
def test_other_classes_are_not_relabelled(names):
  source = Labelled(["0", "1", "2"], [0])
  assert in_class_order(source, names) is source


def test_ambiguous_names_are_not_relabelled():
  source = Labelled(["b", "a", "a"], [0])
  assert in_class_order(source, ["a", "a", "b"]) is source


def test_hidden_names_are_left_out_everywhere(tmp_path, capsys):
  root = write(
    tmp_path / "images",
    *("a/0.jpg", "b/0.jpg", "a/._0.jpg", "b/.ipynb_checkpoints/0-checkpoint.jpg"),
    *(".ipynb_checkpoints/0.jpg", ".Trash-1000/0.jpg", ".directory", "a/.nomedia"),
  )
  source = FolderSource(str(root), "")
  assert (source.class_names, paths(source)) == (["a", "b"], ["a/0.jpg", "b/0.jpg"])
  assert capsys.readouterr().out == ""


def test_a_data_set_below_a_hidden_folder_is_none_of_them(tmp_path):
  root = write(tmp_path / ".data/images", "a/0.jpg")
  assert len(FolderSource(str(root), "")) == 1


def test_other_files_are_counted_in_one_line(tmp_path, capsys):
  root = write(
    tmp_path / "images",
    *("a/0.jpg", "a/1.gif", "a/2.GIF", "a/deep/3.avif", "a/4.heic", "a/README", "b/0.jpg"),
    *("b/5.jpg.part", "b/Thumbs.db", "b/x.\x1b[31m", "loose.jpg", "labels.csv"),
  )
  os.mkfifo(root / "a/pipe.jpg")  # would be waited for
  for _ in range(2):
    assert len(FolderSource(str(root), "")) == 2
    out = capsys.readouterr().out
    assert "passed over what is not an image of a class, 11 in all (2 beside the folders of" in out
    assert "2 .gif" in out
    assert out.count("passed over") == 1
    assert "\x1b" not in out


def test_folders_of_systems_are_left_out_and_counted(tmp_path, capsys):
  """Of a zip file from macOS, a Synology server, the root of a disk, and others."""
  root = write(
    tmp_path / "images",
    *("a/0.jpg", "b/0.jpg", "__MACOSX/a/._0.jpg", "lost+found/0.jpg", "#recycle/a/1.jpg"),
    *("@eaDir/a.jpg", "a/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "b/deep/@eaDir/x/THUMB.jpg"),
    *("System Volume Information/x", "a/$RECYCLE.BIN/2.jpg"),
  )
  for _ in range(2):
    source = FolderSource(str(root), "")
    assert (source.class_names, paths(source)) == (["a", "b"], ["a/0.jpg", "b/0.jpg"])
    assert "passed over what is not an image of a class, 8 in all (3 folders named @eaDir, " in (
      capsys.readouterr().out
    )


def test_links_that_multiply_the_folders_are_named(tmp_path, monkeypatch):
  monkeypatch.setattr(listing, "MAX_REPEATS", 100)
  root = write(tmp_path / "images", "a/0.jpg", "b/0.jpg")
  for i in range(30):  # two links in each to the next: 2^30 paths
    write(tmp_path, f"chain/{i}/0.jpg")
    for name in ("left", "right"):
      (tmp_path / f"chain/{i}/{name}").symlink_to(tmp_path / f"chain/{i + 1}")
  (root / "a/twice").symlink_to(tmp_path / "chain/24")  # few enough to be meant
  assert len(FolderSource(str(root), "")) == 2 + 2**6 - 1
  (root / "a/often").symlink_to(tmp_path / "chain/0")
  with pytest.raises(UserError, match=r"images/a holds links that lead to the same folders more"):
    FolderSource(str(root), "")


def test_links_in_a_circle_are_named(tmp_path):
  root = write(tmp_path / "images", "a/0.jpg", "b/0.jpg")
  (root / "a/loop").symlink_to(root / "b")
  assert len(FolderSource(str(root), "")) == 3
  for target in (root, root / "a", tmp_path / "images/b/../a"):
    (root / "b/back").symlink_to(target)
    with pytest.raises(UserError, match=r"is a link to .*, which holds it; remove the link"):
      FolderSource(str(root), "")
    (root / "b/back").unlink()
  (root / "b/self.jpg").symlink_to(root / "b/self.jpg")  # a file that cannot be read
  assert len(FolderSource(str(root), "")) == 5


def test_what_is_no_folder_is_one_line(tmp_path):
  for name in ("absent", "x" * 5000, "a\0b", str(write(tmp_path, "file") / "file")):
    with pytest.raises(UserError, match=r"not found; set data\.name"):
      FolderSource(name, "")
