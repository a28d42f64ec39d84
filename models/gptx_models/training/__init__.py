"""Training and fine-tuning: the loop and what it needs."""
