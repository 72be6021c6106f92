"""Early rejection on stored samples: its simulation, and the choice of a schedule."""
