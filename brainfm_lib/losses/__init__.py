"""Loss terms as plain functions: tensors in, one float32 scalar out."""
