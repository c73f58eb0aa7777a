"""The command line: one module a command, and what the commands share.

The work itself is done in `pipeline`, `evaluation`, `audit`, `records` and `benchmark`.
"""
