"""The models of an ensemble behind one contract: prompts, caches, logits."""
