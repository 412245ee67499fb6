"""What a compiled network consists of, and the rules it is held to."""
