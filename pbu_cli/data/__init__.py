"""Which class an image shows, in what order folders of classes stand, and how pixels are prepared.

Image files are read in `images`. What a run does with all this is decided in `inputs`.
"""
