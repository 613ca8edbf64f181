"""What several lessons share: figures, measures."""
