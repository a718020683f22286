"""How many processor cores there are to work with."""

import os


def available_cores() -> int:
    """Those that this process may use, where the system tells (Linux); else all of the machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
