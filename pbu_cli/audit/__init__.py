"""What is left of the class inside a network: one attack or measure a module, and `run` for all.

Accuracies are measured in `evaluation`.
"""
