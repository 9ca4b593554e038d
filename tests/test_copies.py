"""Data sets in a store, which are copied to a disk."""

import io
import shutil
from pathlib import Path

import ml_collections
import pytest
from PIL import Image

from gfnet_jax import buckets
from gfnet_jax.data.sources.copies import copied
from gfnet_jax.data.sources.open import open_source
from gfnet_jax.errors import UserError


@pytest.fixture
def cache(own_cache) -> Path:
  return own_cache / "gfnet_jax/data/memory"


def test_a_folder_in_a_store_is_read_from_a_copy(home, cache, capsys):
  for label in ("ant", "bee"):
    for i in range(2):
      png = io.BytesIO()
      Image.new("RGB", (8, 8), (i, 0, 0)).save(png, "PNG")
      (home / f"val/{label}/{i}.png").write_bytes(png.getvalue())
  data = ml_collections.ConfigDict({"source": "folder", "name": str(home)})
  source = open_source(data, "val")
  local = cache / str(home).removeprefix("memory://")
  assert len(source) == 4 and source.class_names == ["ant", "bee"]
  assert source[3].image == (home / "val/bee/1.png").read_bytes() and data.name == str(home)
  assert capsys.readouterr().out.startswith("Copying 4 files (0.00 GiB) of memory://")
  (home / "val/bee/2.png").write_bytes((home / "val/bee/1.png").read_bytes())
  (local / "val/bee/0.png").write_bytes(b"cut off")
  assert len(open_source(data, "val")) == 5
  assert capsys.readouterr().out.startswith("Copying 2 files ")
  (home / "val/bee/2.png").unlink()
  assert len(open_source(data, "val")) == 4
  assert "Copying" not in capsys.readouterr().out


def test_of_a_data_dir_one_data_set_is_copied(home, cache):
  for name in ("digits/1.0.0/a", "other/1.0.0/b"):
    (home / name).write_bytes(b"1")
  local = cache / str(home).removeprefix("memory://")
  assert copied("digits:1.0.0", str(home)) == ("digits:1.0.0", str(local))
  assert [path.name for path in local.iterdir()] == ["digits"]
  assert copied("digits", "") == ("digits", "")
  with pytest.raises(UserError, match="/none holds no data set"):
    copied("none", str(home))


def test_a_copy_that_a_disk_has_no_room_for_is_refused(home, cache, monkeypatch):
  (home / "digits/a").write_bytes(b"1")
  usage = shutil.disk_usage(cache.parents[3])
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**30))
  with pytest.raises(UserError, match=r"which has room for 0\.0; set XDG_CACHE_HOME"):
    copied(str(home / "digits"), "")


def test_no_object_leads_out_of_the_cache(home, cache):
  store = buckets._file_system("memory").store
  (home / "a").write_bytes(b"1")
  store[f"{home._path}/../../escape"] = store[(home / "a")._path]
  with pytest.raises(UserError, match="holds no data set"):
    copied(str(home), "")
