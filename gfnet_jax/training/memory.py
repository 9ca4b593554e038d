"""What to change if a training step does not fit the memory of the devices."""

import math

import ml_collections


def advise(config: ml_collections.ConfigDict, devices: int = 1, excess: float = 2.0) -> list[str]:
  """Overrides with which a training step needs less memory, the most useful first."""
  advice = ["--config.sharding=fsdp"] if math.isinf(excess) else []
  if not config.model.remat:
    advice.append("--config.model.remat=True")
  return [*advice, f"--config.data.batch_size={config.data.batch_size // 2 // devices * devices}"]
