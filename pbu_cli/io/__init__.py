"""Files on disk: regular files read whole, atomic writes, strict JSON, pickles and checkpoints.

What the tensors of a checkpoint mean is decided in `models`.
"""
