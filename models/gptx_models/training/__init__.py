"""Training and fine-tuning: the verbs, the loop, and the loop's parts."""
