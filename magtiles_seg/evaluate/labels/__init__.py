"""What models and other exposures say of the labels."""
