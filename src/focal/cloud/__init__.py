"""Where data comes from and results go: local folders, ModelArts' object storage (moxing), OpenI (c2net)."""
