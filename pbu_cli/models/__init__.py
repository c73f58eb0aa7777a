"""From a checkpoint to a loaded network, and what can be read from or changed in any network.

Nothing here knows of images on disk, or of forgetting.
"""
