"""One tokenizer as bytes, several related by bytes, and a growing text's ids kept in step."""
