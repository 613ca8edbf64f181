"""From a source to its notebooks, and the proof that the checks can be trusted."""
