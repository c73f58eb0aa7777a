"""Accuracies, their intervals, the comparison of networks, and the criteria that a user requires.

What is left of the class inside a network is measured in `audit`.
"""
