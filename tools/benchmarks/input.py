"""The input pipeline: its stages, and side by side with a PyTorch DataLoader.

2000 generated JPEGs of 500x375 pixels and about 110 kB, as an image folder; the official
recipe at 224. First the stages, one after the other in one thread. Then the loaders, in
turns: ours, ours with fast decoding, and a DataLoader (needs torch) around the same
transform with the official conversion to normalised floats on the host. Every turn is
timed from the moment at which each worker has delivered once; the medians are compared.
CPU time, of all processes of a loader, is what to look at where other programs run.

With --memory, reads 20 000 batches of small images instead and looks at the memory.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from gfnet_jax.errors import UserError
from gfnet_jax.files import make_directory, write_atomically

IMAGE_SIZE = 224
STAGE_IMAGES = 256  # kept decoded: 150 MB
MEMORY_BATCHES = 20_000
MEMORY_WARM_UP = 2000  # batches after which memory must not grow any more
MEMORY_LIMIT = 32  # MB


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes per loader")
  parser.add_argument("--batch-size", type=int, default=64)
  parser.add_argument("--batches", type=int, default=24, help="timed in every turn")
  parser.add_argument("--rounds", type=int, default=5, help="turns of every loader")
  parser.add_argument("--memory", action="store_true", help="watch the memory instead")


def run(options: argparse.Namespace) -> None:
  if options.output:
    make_directory(options.output.parent)  # before the work, not after
  result = measure_memory(options) if options.memory else measure_speed(options)
  if options.output:
    write_atomically(options.output, json.dumps(result, indent=2) + "\n")
  if options.memory and result["growth_mb"] > MEMORY_LIMIT:
    raise UserError(f"memory grew by {result['growth_mb']:.0f} MB, expected {MEMORY_LIMIT} at most")


def measure_speed(options: argparse.Namespace) -> dict:
  folder = generated_images("large", 2000, (500, 375))
  stages = measure_stages(folder, options)
  print("stage       ms/image   images/s per core")
  for name, seconds in stages.items():
    print(f"{name:10} {1e3 * seconds:9.3f} {1 / seconds:19.1f}")
  ratio = stages["whole"] / (stages["decode"] + stages["crop"] + stages["augment"])
  print(f"the whole takes {ratio:.3f} times its decode, crop and augment\n")

  readers = {
    "exact": lambda: our_batches(folder, options, fast_decode=False),
    "fast_decode": lambda: our_batches(folder, options, fast_decode=True),
    "dataloader": lambda: torch_batches(folder, options),
  }
  turns = {name: [] for name in readers}
  for _ in tqdm(range(options.rounds), unit="round", leave=False, disable=None):
    for name, reader in readers.items():
      turns[name].append(measure_reader(reader, options))
  medians = {
    name: [statistics.median(values) for values in zip(*values, strict=True)]
    for name, values in turns.items()
  }
  print(f"{options.workers} workers     images/s  x DataLoader   per CPU-second  x DataLoader")
  for name, (wall, cpu) in medians.items():
    other_wall, other_cpu = medians["dataloader"]
    print(f"{name:12} {wall:10.1f} {wall / other_wall:13.2f} {cpu:16.1f} {cpu / other_cpu:13.2f}")
  return {
    "workers": options.workers,
    "batch_size": options.batch_size,
    "cpu_seconds_per_image": stages,
    "whole_over_stages": ratio,
    "images_per_second_and_per_cpu_second": turns,
    "medians": medians,
  }


def measure_stages(folder: Path, options: argparse.Namespace) -> dict[str, float]:
  """CPU seconds per image of every stage and of the whole loader in one thread.

  The passes over the stages alternate; the fastest of each counts.
  """
  from gfnet_jax.data.decode import decode_image
  from gfnet_jax.data.sources.folder import FolderSource
  from gfnet_jax.data.transforms import TrainTransform

  source = FolderSource(str(folder), "train")
  crop = TrainTransform(image_size=IMAGE_SIZE, flip=0, auto_augment="", color_jitter=0)
  full = TrainTransform(image_size=IMAGE_SIZE)
  indices = range(STAGE_IMAGES)
  records = [source[i].image for i in indices]
  decoded = [decode_image(record) for record in records]
  arrays = [crop(image, random.Random(i)) for i, image in enumerate(decoded)]
  whole = our_batches(
    folder, options, num_batches=options.rounds, batch_size=STAGE_IMAGES, threads=0, workers=0
  )
  works = {
    "read": lambda: [source[i] for i in indices],
    "decode": lambda: [decode_image(record) for record in records],
    "crop": lambda: [crop(image, random.Random(i)) for i, image in enumerate(decoded)],
    "augment": lambda: [full(image, random.Random(i)) for i, image in enumerate(decoded)],
    "batch": lambda: np.stack(arrays),
    "whole": lambda: next(whole),
  }
  seconds = {name: [] for name in works}
  for _ in range(options.rounds):
    for name, work in works.items():
      begin = time.process_time()
      work()
      seconds[name].append(time.process_time() - begin)
  fastest = {name: min(values) / STAGE_IMAGES for name, values in seconds.items()}
  fastest["augment"] -= fastest["crop"]  # the whole transform draws the same crops
  return fastest


def measure_reader(
  reader: Callable[[], Iterable], options: argparse.Namespace
) -> tuple[float, float]:
  """Images per second and per second of CPU time, in one turn."""
  batches = iter(reader())
  for _ in range(options.workers):
    next(batches)
  begin, cpu_begin = time.perf_counter(), cpu_seconds()
  for _ in range(options.batches):
    next(batches)
  seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu_begin
  next(batches, None)  # the end, which ends the workers
  images = options.batches * options.batch_size
  return images / seconds, images / cpu


def steps(options: argparse.Namespace) -> int:
  """Batches of a turn: those that are waited for, and those that are timed."""
  return options.workers + options.batches


def our_batches(
  folder: Path,
  options: argparse.Namespace,
  *,
  num_steps: int | None = None,
  batch_size: int | None = None,
  fast_decode: bool = False,
  threads: int = 1,
  workers: int | None = None,
  image_size: int = IMAGE_SIZE,
) -> Iterator:
  from gfnet_jax.data.pipeline import Reading, train_batches
  from gfnet_jax.data.samples import Share
  from gfnet_jax.data.sources.folder import FolderSource
  from gfnet_jax.data.transforms import TrainTransform

  return train_batches(
    FolderSource(str(folder), "train"),
    TrainTransform(image_size=image_size, fast_decode=fast_decode),
    seed=0,
    share=Share(batch_size or options.batch_size),
    first_batch=0,
    num_batches=num_steps or steps(options),
    reading=Reading(threads, 2, options.workers if workers is None else workers),
  )


class TorchImages:
  """A map-style data set of PyTorch: the official pipeline's work on the host."""

  def __init__(self, folder: Path):
    from gfnet_jax.data.sources.folder import FolderSource
    from gfnet_jax.data.transforms import TrainTransform

    self.source = FolderSource(str(folder), "train")
    self.transform = TrainTransform(image_size=IMAGE_SIZE)

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, i: int):
    import torch

    from gfnet_jax.data.decode import open_image
    from gfnet_jax.data.imagenet import MEAN, STD

    record = self.source[i]
    pixels = self.transform(open_image(record.image), random)
    # As torchvision's ToTensor and Normalize, which works on a copy.
    image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    return image.clone().sub_(mean).div_(std), record.label


def torch_batches(folder: Path, options: argparse.Namespace) -> Iterable:
  from torch.utils.data import DataLoader, RandomSampler

  images = TorchImages(folder)
  return DataLoader(
    images,
    options.batch_size,
    sampler=RandomSampler(images, num_samples=options.batch_size * steps(options)),
    num_workers=options.workers,
    multiprocessing_context="spawn",
  )


def measure_memory(options: argparse.Namespace) -> dict:
  """Resident memory of this process and its workers along 20 000 batches."""
  folder = generated_images("small", 600, (64, 48))
  resident = {}
  batches = our_batches(folder, options, num_batches=MEMORY_BATCHES, batch_size=8, image_size=40)
  for step, batch in enumerate(batches, 1):
    del batch
    if step % MEMORY_WARM_UP == 0:
      resident[step] = resident_mb()
      print(f"{step:6} batches: {resident[step]:8.1f} MB")
  growth = resident[MEMORY_BATCHES] - resident[MEMORY_WARM_UP]
  print(f"grown by {growth:.1f} MB")
  return {"workers": options.workers, "resident_mb": resident, "growth_mb": growth}


def resident_mb() -> float:
  """Of this process and its children, in MB (Linux)."""
  pages = [int((process / "statm").read_text().split()[1]) for process in processes()]
  return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_seconds() -> float:
  """Of this process and its children (Linux)."""
  fields = [(process / "stat").read_text().rpartition(")")[2].split() for process in processes()]
  return sum(int(user) + int(system) for *_, user, system in (f[:13] for f in fields)) / os.sysconf(
    "SC_CLK_TCK"
  )


def processes() -> list[Path]:
  """The directories of this process and its children in /proc."""
  threads = Path("/proc/self/task").iterdir()
  children = [pid for thread in threads for pid in (thread / "children").read_text().split()]
  return [Path("/proc") / pid for pid in ["self", *children]]


def generated_images(name: str, count: int, size: tuple[int, int]) -> Path:
  """A folder of JPEGs with detail at all scales, made once."""
  folder = Path(tempfile.gettempdir()) / f"gfnet_jax-benchmark-{name}-{count}"
  if not folder.is_dir():
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
    rng = np.random.default_rng(0)
    for i in range(count):
      path = unfinished / "train" / f"class{i % 10}" / f"{i}.JPEG"
      path.parent.mkdir(parents=True, exist_ok=True)
      generated_image(rng, size).save(path, quality=94)
    unfinished.rename(folder)
  return folder


def generated_image(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
  total = np.full((size[1], size[0], 3), 128, np.float32)
  for cell, strength in ((96, 50), (32, 30), (8, 20), (2, 12), (1, 8)):
    shape = (-(-size[1] // cell), -(-size[0] // cell))
    for channel in range(3):
      layer = Image.fromarray(rng.normal(0, strength, shape).astype(np.float32))
      total[..., channel] += np.asarray(layer.resize(size, Image.Resampling.BICUBIC))
  return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))
