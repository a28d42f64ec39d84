"""What an artifact's certificate is made of: the evaluation text and the figures on it."""
