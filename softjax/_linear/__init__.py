"""The last linear layer and its loss, one chunk of samples at a time."""
