"""What features, or an encoder, know of a task: protocols of the comparison, all scored on held-out subjects.

Nothing is imported here: a profile is read, and a grid planned, without scikit-learn.
"""
