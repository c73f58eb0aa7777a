"""Files of images from strangers: folders and lists of them, their limits and faults, their pixels.

Which class an image shows, and how a network wants its pixels, is decided in `data`.
"""
