"""Rounds in which the host reads nothing: every shape is fixed, and what changes is in tensors on the device.

The state, its two integers per row and the operations are those of `pearl_decode.round`; a lane's part of a round may
be recorded once and replayed. The host queues rounds ahead, and learns what they gave from a ring, some rounds late.
"""
