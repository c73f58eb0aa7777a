"""The flags of the commands, with their help: those that several share, and those of unlearn.

What a flag does is decided by the command that takes it.
"""
