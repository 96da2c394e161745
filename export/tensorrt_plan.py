"""Compiling an ONNX file with TensorRT. `trt` is the module `tensorrt` or `tensorrt_rtx` throughout."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from genreward_fast.errors import UserError


class Profile(NamedTuple):
    """Batch sizes that a plan is made for: from 1 to `largest`, and best for `usual`."""

    usual: int
    largest: int


class ParsedGraph(NamedTuple):
    """A network, and what must outlive it.

    Attributes:
        builder: an IBuilder.
        network: its INetworkDefinition, strongly typed.
        parser: owns the network's weights.
        log: what has been said about it.
    """

    builder: Any
    network: Any
    parser: Any
    log: Any


def target_capability(trt: Any, name: str, target: str) -> Any:
    """The library's constant for a compute capability such as "sm_89".

    Raises:
        UserError: backend `name` cannot build for that GPU, or only for the one in the machine.
    """
    if not hasattr(trt, "ComputeCapability"):
        raise UserError(f"{name} builds only for the GPU in the machine; build on that GPU, or use tensorrt-rtx")
    known = {f"sm_{key[2:]}": value for key, value in trt.ComputeCapability.__members__.items() if key[2:].isdigit()}
    if target not in known:
        raise UserError(f"{name} has no engines for {target}, only for {', '.join(known)}; use another backend")
    return known[target]


def parsed_graph(trt: Any, graph: Path) -> ParsedGraph:
    """The network of an ONNX file.

    Raises:
        RuntimeError: TensorRT cannot do what is in it.
    """
    log = _log(trt)
    builder = trt.Builder(log)
    # Of TensorRT 10 this asks for strong types; later ones know no others.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        raise RuntimeError(_parse_error(parser))
    return ParsedGraph(builder, network, parser, log)


def serialized_plan(trt: Any, graph: Path, profile: Profile | None, capability: Any) -> bytes:
    """The plan of an ONNX file.

    Args:
        profile: sizes of axis 0 of all inputs; None where no axis is dynamic.
        capability: a `trt.ComputeCapability`; None for the current GPU, in a library that has no others.

    Raises:
        RuntimeError: TensorRT cannot parse or build it.
    """
    builder, network, _parser, log = parsed_graph(trt, graph)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # it would cost three digits of a float32 module
    if capability is not None:
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(capability, 0):
            raise RuntimeError(f"this TensorRT does not build for {capability}")
    if profile is not None and config.add_optimization_profile(optimization_profile(builder, network, profile)) < 0:
        raise RuntimeError(f"TensorRT does not take batches of 1 to {profile.largest}")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(log.errors[0] if log.errors else "TensorRT gave no plan and no reason")
    return bytes(plan)


def optimization_profile(builder: Any, network: Any, profile: Profile) -> Any:
    """The IOptimizationProfile in which axis 0 of every input is as `profile` says."""
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        shapes.set_shape(tensor.name, *((batch, *rest) for batch in (1, *profile)))
    return shapes


def _parse_error(parser: Any) -> str:
    if not parser.num_errors:
        return "TensorRT cannot parse its ONNX graph"
    error = parser.get_error(0)
    # The first line names the node, the second one what is wrong with it.
    return f"TensorRT cannot do {error.node_operator()}: {': '.join(error.desc().splitlines()[:2])}"


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):
        """Keeps errors, and says nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()
