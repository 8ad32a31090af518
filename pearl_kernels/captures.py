"""Captures of CUDA graphs, and what no thread may do beside one."""

from __future__ import annotations

import threading

# Held by a thread that captures a graph, and by one that has torch give memory back, which torch refuses to while any
# thread captures. A capture begins by waiting for the device, which breaks one that is under way. Garbage that is
# collected before it begins may give memory back.
turn = threading.RLock()
