"""What a file of another kind is, by its first bytes or by the names in its archive."""

from collections.abc import Iterable
from typing import NamedTuple

from gfnet_jax.text import printable

HEAD = 1024  # bytes that tell


class DamagedFileError(Exception):
  """No writer of the format would have written these bytes."""


class UnsuitableFileError(Exception):
  """The file is intact, but cannot be used; the message says what it is and what to do."""


class Kind(NamedTuple):
  """A kind of file that holds no weights as we read them, and what to do with one."""

  name: str
  advice: str

  def __str__(self) -> str:
    return f"it is {self.name}, expected .pth or .safetensors; {self.advice}"


UNPACK = "unpack it, and give the path of the file of weights in it"
EXPORT = "save the state dict of the model in PyTorch (torch.save), or as .safetensors"
HTML = Kind("an HTML page", "open its address in a browser and download the file there")

BEGINNINGS = {
  b"version https://git-lfs": Kind(
    "a pointer of Git LFS, not the file itself", "fetch the file with `git lfs pull`"
  ),
  b"\x1f\x8b": Kind("compressed with gzip", UNPACK),
  b"BZh": Kind("compressed with bzip2", UNPACK),
  b"\xfd7zXZ\x00": Kind("compressed with xz", UNPACK),
  b"\x28\xb5\x2f\xfd": Kind("compressed with Zstandard", UNPACK),
  b"\x04\x22\x4d\x18": Kind("compressed with LZ4", UNPACK),
  b"7z\xbc\xaf\x27\x1c": Kind("a 7-Zip archive", UNPACK),
  b"Rar!": Kind("a RAR archive", UNPACK),
  b"\x89HDF\r\n\x1a\n": Kind("HDF5, as Keras and MATLAB write it", EXPORT),
  b"\x93NUMPY": Kind("a NumPy array (.npy)", EXPORT),
  b"GGUF": Kind("GGUF, as llama.cpp reads it", EXPORT),
  b"%PDF": Kind("a PDF", "download the weights instead"),
  b"\x7fELF": Kind("a program", "download the weights instead"),
}
ARCHIVE_PARTS = {  # ends of names in an archive
  "/constants.pkl": Kind(
    "TorchScript, a program (torch.jit.save)",
    "save its weights with torch.save(torch.jit.load(file).state_dict(), 'weights.pth')",
  ),
  "serialized_exported_program.json": Kind("a program (torch.export.save)", EXPORT),
  "models/model.json": Kind("a program (torch.export.save)", EXPORT),
  "model.weights.h5": Kind("a Keras model", EXPORT),
  "[Content_Types].xml": Kind("an office document", "download the weights instead"),
}
WEIGHTS = (".pth", ".pt", ".pth.tar", ".bin", ".ckpt", ".safetensors")


def other_kind(head: bytes) -> Kind | None:
  """What a file that begins like this is, or None if it may hold weights."""
  if looks_like_html(head):
    return HTML
  for beginning, kind in BEGINNINGS.items():
    if head.startswith(beginning):
      return kind
  if head[257:262] == b"ustar":
    return Kind("a tar archive", UNPACK)
  if head[4:8] == b"TFL3":
    return Kind("a TensorFlow Lite model", EXPORT)
  if head[:1] == b"\x08" and head[2:3] == b"\x12" and b"\x00" not in head[:4]:
    return Kind("an ONNX model", EXPORT)
  if _is_text(head):
    return Kind("a text file", "download the weights instead")
  return None


def other_archive(names: Iterable[str]) -> Kind | None:
  """What a zip archive with these names is, or None if it may be one of PyTorch."""
  names = list(names)
  if names and all(name.endswith(".npy") for name in names):
    return Kind("NumPy arrays (.npz)", EXPORT)
  for part, kind in ARCHIVE_PARTS.items():
    if any(name.endswith(part) for name in names):
      return kind
  inside = [name for name in names if name.endswith(WEIGHTS)]
  return Kind(f"a zip archive around {printable(inside[0])}", UNPACK) if inside else None


def looks_like_html(head: bytes) -> bool:
  """Whether a file that begins with these bytes is a web page."""
  return head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))


def looks_like_json(head: bytes) -> bool:
  """Whether a file that begins with these bytes is a JSON object."""
  return head.lstrip()[:1] == b"{" and _is_text(head)


def _is_text(head: bytes) -> bool:
  """Whether bytes are UTF-8 without control characters; a character may be cut at the end."""
  text = head.decode("utf-8", errors="ignore")
  kept = len(text.encode())
  return bool(text) and len(head) - kept <= 3 and all(c.isprintable() or c.isspace() for c in text)
