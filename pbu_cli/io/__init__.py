"""Files: regular files read whole, outputs written whole or not at all, JSON, pickles and checkpoints.

What the tensors of a checkpoint mean is the business of `models`.
"""
