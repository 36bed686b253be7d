"""Every section of the configuration, and every range."""
