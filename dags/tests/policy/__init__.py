"""Rules for every definition of every location. A failure names the definition and the remedy."""
