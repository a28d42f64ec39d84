"""LoRA adapters: their modules in training, PEFT's file format, and merging."""
