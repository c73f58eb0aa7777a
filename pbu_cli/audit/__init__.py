"""What is left of the class inside a network: one attack or measure a module, and `run` for all of them.

Accuracies are measured in `evaluation`.
"""
