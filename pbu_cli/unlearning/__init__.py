"""The method: objective, anchors, optimiser, stopping rule and the loop that joins them.

Pure computation on tensors and modules: no files, no flags, no output on a screen.
"""
