"""From folders of image files to tensors, and what the images tell of the label and the normalisation.

Which images a run reads, and what it does with them, is decided in `inputs` and `pipeline`.
"""
