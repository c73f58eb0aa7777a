"""The commands as functions, from inputs to the file that is written: fisher, unlearn, evaluate.

Nothing here parses flags or prints.
"""
