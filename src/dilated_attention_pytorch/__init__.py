"""LongNet's dilated attention: exact forward and backward, and models that train and run."""
