"""A loaded network and its decoded forget images, with everything that had to be inferred.

The inferences themselves are in `data` and `models`; what follows from the inputs is in `pipeline`.
"""
