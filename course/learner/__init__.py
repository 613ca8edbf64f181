"""What a learner asks for besides a check."""
