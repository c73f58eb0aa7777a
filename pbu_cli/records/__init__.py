"""The run record: the statement of what was run, who writes it, and who verifies it.

What is measured is decided elsewhere; a record only keeps it.
"""
