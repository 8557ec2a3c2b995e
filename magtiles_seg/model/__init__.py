"""Networks and their losses, checkpoints, and the card that every model file carries."""
