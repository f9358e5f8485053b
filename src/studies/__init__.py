"""A study: several settings of a search, several seeds each, compared with each other and with random architectures."""
