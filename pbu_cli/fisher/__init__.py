"""The diagonal Fisher information of a network on a set of images, and the file that holds it.

How the diagonal is used is the business of `unlearning`.
"""
