"""The commands import, train and finetune."""
