"""What is searched: choices, and the spaces that are made of them."""
