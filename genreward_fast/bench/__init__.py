"""Benchmarks: `genreward bench`. Every number beside the device's limit, and beside other implementations."""
