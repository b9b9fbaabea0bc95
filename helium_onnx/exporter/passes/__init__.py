"""Graph transformations, one a file: the docstring of each states the matched pattern and the replacement."""
