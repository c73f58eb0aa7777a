"""The machine that a run is on: its devices and memory, smaller batches where memory runs out, CUDA graphs.

Nothing here knows of models, files of the user, or the method.
"""
