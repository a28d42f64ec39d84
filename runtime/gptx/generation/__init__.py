"""From token ids to new token ids: sessions, sampling, the decode loop, streams."""
