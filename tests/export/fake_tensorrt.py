"""As much of TensorRT's Python interface as running a plan needs, on the CPU: every plan doubles its input."""

import ctypes
from types import SimpleNamespace


class Context:
    def __init__(self, engine, config):
        self.engine, self.config = engine, config
        self.shapes, self.addresses, self.streams = {}, {}, []
        self.memory = None

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return shape[0] <= self.engine.max_batch

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self):
        return 64 * self.shapes["x"][0]

    def set_device_memory(self, address, size):
        self.memory = address, size

    def execute_async_v3(self, stream):
        assert stream != 0, "on the default stream TensorRT synchronises the device"
        assert self.memory[0] != 0
        assert self.memory[1] == 64 * self.shapes["x"][0]
        self.streams.append(stream)
        count = self.shapes["x"][0] * self.shapes["x"][1]
        numbers = ctypes.c_float * count
        x, y = (numbers.from_address(self.addresses[name]) for name in ("x", "y"))
        y[:] = [2 * value for value in x]
        return self.engine.works


class Config:
    """TensorRT's own; TensorRT for RTX's is `RTXConfig`."""

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy


class RTXConfig(Config):
    dynamic_shapes_kernel_specialization_strategy = "LAZY"
    cache = None

    def create_runtime_cache(self):
        return SimpleNamespace(blobs=[], deserialize=lambda blob: blob == b"kernels", serialize=lambda: b"kernels")

    def set_runtime_cache(self, cache):
        self.cache = cache


class Engine:
    def __init__(self, module):
        self.module = module
        self.names = ["x", "y"]
        self.contexts = []
        self.max_batch = 8
        self.works = True

    @property
    def num_io_tensors(self):
        return len(self.names)

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return "OUT" if name == "y" else "IN"

    def create_runtime_config(self):
        return RTXConfig() if self.module.rtx else Config()

    def create_execution_context(self, config):
        self.contexts.append(Context(self, config))
        return self.contexts[-1]


def module(rtx):
    """A stand-in for `tensorrt_rtx` or `tensorrt`; `engine` is what every plan but b"bad" becomes."""
    fake = SimpleNamespace(
        __version__="1.7",
        rtx=rtx,
        TensorIOMode=SimpleNamespace(INPUT="IN", OUTPUT="OUT"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="USER_MANAGED"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="EAGER"),
    )
    fake.engine = Engine(fake)
    fake.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None})
    fake.Runtime = lambda logger: SimpleNamespace(
        deserialize_cuda_engine=lambda plan: None if plan == b"bad" else fake.engine
    )
    return fake
