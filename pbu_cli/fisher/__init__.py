"""The diagonal Fisher information of a network on a set of images, and the file that holds it.

How the diagonal is used during unlearning is not here but in `unlearning`.
"""
