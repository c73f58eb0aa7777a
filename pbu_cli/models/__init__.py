"""From a checkpoint to a loaded network, and operations that work on any network.

No module here knows about image files or about unlearning.
"""
