"""Kernels that the operations share, in Triton: rows, chains, residuals, and the memory they are worked out in.

Every kernel works on tiles of several rows, so that one program may take many short rows or a slice of one long row.
Grids depend on shapes alone and nothing is read back, so calls can be captured in a CUDA graph.
"""
