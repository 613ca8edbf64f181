"""What is saved: lessons as they lie in their files, and what has passed. Read without
torch, at once, and nothing is run."""
