"""From folders of image files to tensors; the normalisation and labels inferred from images.

Which images a run reads and what it does with them is decided in `inputs` and `pipeline`.
"""
