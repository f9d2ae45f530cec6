"""One process a device: which rank this is, and who starts and watches the others."""
