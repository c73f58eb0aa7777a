"""The retained images of an evaluation: which they are, what networks predict for them, and which
of them an audit reads. What follows from the predictions is in `evaluation`.
"""
