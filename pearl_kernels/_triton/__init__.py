"""Kernels in Triton: of rows of logits, chains and residuals, which the operations share, with the memory these are
worked out in; and of a decoder, its layers and their attention.

Those of logits work on tiles of several rows, so that one program may take many short rows or a slice of one long row.
Grids depend on shapes alone and nothing is read back, so calls can be captured in a CUDA graph.
"""
