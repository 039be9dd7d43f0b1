"""How long things take, and on what."""

import time
from collections.abc import Callable

import numpy as np
import torch

__all__ = ["REPEATS", "device", "seconds"]

REPEATS = 5


def seconds(work: Callable[[], object]) -> float:
    """The median of several runs, after one that warms up."""
    work()
    times = []
    for _ in range(REPEATS):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def device() -> str:
    """The GPU's name, or how many threads of the CPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
