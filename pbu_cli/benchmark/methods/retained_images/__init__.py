"""Methods that read retained images: fresh training, fine-tuning, UNSIR and the two teachers.

What does without retained images stands in `forget_images` and `controls`.
"""
