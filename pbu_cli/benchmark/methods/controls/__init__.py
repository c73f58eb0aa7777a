"""Controls: what the simplest means achieve, which no paper proposes as a method.

A method has to be judged by what it achieves beyond them. None of them reads retained images.
"""
