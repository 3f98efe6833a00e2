"""Rules that every definition of every location must keep. A failure names the culprit and the remedy."""
