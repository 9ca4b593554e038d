"""The commands of `gfnet-jax`, and of most scripts of the repository: flags, then one call."""
