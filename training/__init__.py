"""How the bundled demo models were made: their data, objectives, training and what is stored.

Code of the repository, not of the package: run from its root, as `python -m training.train`.
"""
