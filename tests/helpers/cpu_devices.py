"""XLA flags for tests on a CPU."""

# Tests compile small programs and run them a few times, so compilation dominates.
_QUICK_COMPILES = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


# Options of a compilation whose test expects sums rounded as well as in use: level 0 adds one number after the other.
ACCURATE = {"xla_backend_optimization_level": 1}


def xla_flags(devices: int) -> str:
    """The value of XLA_FLAGS that makes one CPU look like several devices, and compiles quickly."""
    return " ".join((f"--xla_force_host_platform_device_count={devices}", *_QUICK_COMPILES))
