"""The kernels of convolutions, arranged so that a run takes less time.

What a network computes stays the same. Networks themselves and their features are not in here.
"""
