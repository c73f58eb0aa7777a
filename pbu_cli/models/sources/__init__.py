"""Where architectures come from: torchvision, timm, transformers, or the user's own function.

A source tells which of its networks a checkpoint is, and builds that network. Reading files is not
its job.
"""
