"""Training augmentation with timm's meaning of every setting; each function is explicit about its randomness."""
