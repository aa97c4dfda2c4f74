"""Small models with the class names, child names, shapes and layouts of public code bases.

Written for the tests from descriptions of those models; only what attention meets is there: stages
are as wide as the originals or as their constructors allow, and as shallow as possible.
"""
