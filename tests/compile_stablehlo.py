"""Compiles a program of StableHLO for an accelerator that is not there; prints its result.

python compile_stablehlo.py TOPOLOGY PROGRAM
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main(topology: str, path: str) -> None:
  sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
  from ahead import chips

  chips.prepare_environment()  # before jax is imported
  import jax
  from jax import export
  from jax.sharding import SingleDeviceSharding

  device, *_ = chips.chips_of(topology, *chips.parse_topology(topology))
  exported = export.deserialize(Path(path).read_bytes())
  (images,) = exported.in_avals
  sharding = SingleDeviceSharding(device)
  images = jax.ShapeDtypeStruct((8, *images.shape[1:]), images.dtype, sharding=sharding)
  compiled = jax.jit(exported.call).lower(images).compile()
  print(device.device_kind, compiled.out_info.shape)


if __name__ == "__main__":
  main(*sys.argv[1:])
