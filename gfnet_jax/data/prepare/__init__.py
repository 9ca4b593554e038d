"""Writing data sets in the format that is fastest to read."""
