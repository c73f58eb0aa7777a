"""The faults that a review of f14c514 found, each as a command that can be run again.

A module here has a list `FAULTS`; `run` runs all of them, on this checkout and on an older one, and
prints the table.
"""
