"""The backbones that `attach` knows, one file for each source; importing them registers them."""
