"""What the kernels' benchmarks share; it lives in the package, where `genreward bench` needs it."""

from genreward_fast.bench.timing import Limits, arguments, call_times, measure_limits, median_ms, report

__all__ = ["Limits", "arguments", "call_times", "measure_limits", "median_ms", "report"]
