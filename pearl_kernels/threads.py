"""The compute threads of torch and of the kernels on a CPU."""

from __future__ import annotations

import importlib


def release_threads() -> None:
    """End the OpenMP threads that wait for the calling thread's next work; such work starts new ones.

    Every thread that calls torch or a kernel has compute threads of its own. Where all of them together are more than
    there are cores, OpenMP no longer lets them wait awake, and work in many small pieces, as a forward over few rows
    is, takes a third longer: so a thread that leaves the work to another one should let its own go.
    Does nothing where the extension or the OpenMP runtime cannot.
    """
    try:
        extension = importlib.import_module("pearl_kernels._C")
    except ImportError:
        return
    extension.release_threads()
