"""The machine of a run: device, threads and measured memory."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steps.runtime.concurrency import available_cores
from steps.runtime.memory import keep_heap
from wsss.errors import ConfigError

if TYPE_CHECKING:
    import torch

MOST_LOADERS = 16   # processes; each holds two batches
CPU_INFO = Path("/proc/cpuinfo")
# On Linux one of these exists if torch can see a GPU: NVIDIA (two paths), WSL 2, Jetson, AMD.
DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg", "/dev/nvmap", "/dev/kfd")


def choose_device(name: str) -> str:
    """The device of `device=`: "cpu" or "cuda". Raises ConfigError if CUDA is requested but not available.

    torch is imported only if there may be a GPU, because the import is slow.
    """
    if name == "cpu" or name == "auto" and sys.platform == "linux" and not any(map(os.path.exists, DRIVERS)):
        return "cpu"
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch sees no CUDA device here. Set device=cpu or device=auto, or install a torch "
                          "build that fits the driver")
    return "cuda" if torch.cuda.is_available() else "cpu"


def fast_precision(device: str) -> str:
    """The value of `precision=auto`: "bf16" if the device supports it natively (CUDA from Ampere on; x86 with AVX-512 BF16 or
    AMX; ARM with SVE BF16), else "float32", because emulated bf16 is slower."""
    if device == "cuda":
        import torch

        native = torch.cuda.get_device_capability() >= (8, 0)
    else:
        native = cpu_has_bf16()
    return "bf16" if native else "float32"


def cpu_has_bf16() -> bool:
    """Whether the CPU supports bf16 natively, from the flags that Linux lists for x86, else from torch."""
    listed = _listed_by_linux()
    if listed is not None:
        return listed
    import torch

    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))


def _listed_by_linux() -> bool | None:
    """None if Linux lists no x86 flags, or the CPU has AVX-512 and Linux is older than 5.3, which does not list bf16."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", CPU_INFO.read_text(), re.MULTILINE)
    except OSError:
        return None
    has = set(flags[1].split()) if flags else set()
    version = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    if not has or "avx512f" in has and version < (5, 3):
        return None
    return bool(has & {"avx512_bf16", "amx_bf16"})


@contextmanager
def prepared_process(threads: int | None, device: torch.device, processes: int = 1) -> Iterator[None]:
    """Inside this context the thread count is fixed, because results are bit-identical only at the same count, and a GPU computes
    deterministically, without TF32. After it torch's settings are those of before: the caller may be another program.

    `threads`: None means all cores of this process, divided by `processes` on this machine if Slurm does not set the number
    of each.
    """
    import torch

    own: dict[tuple[Any, str], Any] = {} if device.type == "cpu" else {
        (torch.backends.cudnn, "allow_tf32"): False, (torch.backends.cuda.matmul, "allow_tf32"): False,
        (torch.backends.cudnn, "benchmark"): False,
        (torch.utils.deterministic, "fill_uninitialized_memory"): False}   # it would write every output twice
    before = {place: getattr(*place) for place in own}
    count = torch.get_num_threads()
    deterministic, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(threads or _cores(processes))
    keep_heap()
    try:
        for place, value in own.items():
            setattr(*place, value)
        if device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")   # required by torch's deterministic algorithms
            torch.use_deterministic_algorithms(True, warn_only=True)
        yield
    finally:
        torch.set_num_threads(count)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        for place, value in before.items():
            setattr(*place, value)


def loader_processes(workers: int | None, threads: int | None, device: torch.device, processes: int = 1) -> int:
    """The number of processes that load training images. `workers` None: on a GPU one for each of the `threads` (None: cores), at
    most `MOST_LOADERS`; on the CPU 0."""
    if workers is not None:
        return workers
    return min(threads or _cores(processes), MOST_LOADERS) if device.type == "cuda" else 0


def _cores(processes: int) -> int:
    """The cores of this process, one of `processes` on this machine."""
    if processes > 1:
        return int(os.environ.get("SLURM_CPUS_PER_TASK", max(1, available_cores() // processes)))
    return available_cores()


def reset_peak_memory(device: torch.device) -> None:
    """Reset the measurement of `peak_memory`."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")   # Linux: resets VmHWM
    except OSError:
        pass


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory in MiB of the process ("host"), and of the CUDA device if one is used ("cuda")."""
    peak = {}
    try:
        status = Path("/proc/self/status").read_text()
        peak["host"] = round(int(status.split("VmHWM:")[1].split()[0]) / 1024, 1)
    except (OSError, IndexError):
        pass
    if device.type == "cuda":
        import torch

        peak["cuda"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return peak


def free_gpu_mb() -> float | None:
    """MiB that are free on the current GPU; None if it cannot be used now."""
    import torch

    try:
        return torch.cuda.mem_get_info()[0] / 2**20
    except RuntimeError:   # for example full, or reserved by another process
        return None


def versions() -> dict[str, str]:
    """The versions of Python and the numerical packages."""
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": version("torchvision"),
            "numpy": np.__version__, "hydra-core": version("hydra-core")}
