"""Requests share the steps of one model: who runs in which step, and what its logits become."""
