"""One text: options, prompt, sampling and transcript; and sessions, token ids in, logits out."""
