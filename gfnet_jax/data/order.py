"""Which images stand in which batch: a pure function of the seed and of a few sizes."""

from collections.abc import Collection, Iterable, Iterator

import grain

from gfnet_jax.data.samples import Place, Share


def nth_batch(n: int, skipped: Collection[int]) -> int:
  """The index of the n-th batch (n = 0, 1, ...) of those that are not skipped."""
  for index in sorted(skipped):
    n += index <= n
  return n


def training_order(
  batches: Iterable[int], *, size: int, seed: int, share: Share, repeats: int
) -> Iterator[list[Place]]:
  """The rows of one process; every epoch is a new permutation of the source.

  Args:
    batches: indices of global batches.
    size: of the source.
    seed: of the permutations.
    share: of the process.
    repeats: how many times an epoch shows each of the images that it shows.

  Yields:
    The places of the rows of one batch, for each of the batches.
  """
  images = grain.MapDataset.range(size).seed(seed).shuffle().repeat()
  # Repetitions of an image are neighbours in the order of the epoch, but not in a batch.
  rows = range(share.batch_size)
  places = [place for first in range(repeats) for place in rows[first::repeats]]
  first_row = share.process_index * share.rows
  for batch in batches:
    found = []
    for place in places[first_row : first_row + share.rows]:
      epoch, position = divmod(batch * share.batch_size + place, size)
      image, repetition = divmod(position, repeats)
      found.append(Place(epoch, images[epoch * size + image], repetition))
    yield found
