"""LoRA adapters: training form, PEFT's files, merging."""
