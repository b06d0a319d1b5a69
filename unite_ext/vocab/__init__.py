"""A tokenizer as bytes, an alignment of several, and the ids of a growing text."""
