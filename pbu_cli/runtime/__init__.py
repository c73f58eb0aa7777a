"""The machine that a run uses: devices, memory, smaller batches when memory runs out, CUDA graphs.

Nothing here knows about models, the user's files or the method.
"""
