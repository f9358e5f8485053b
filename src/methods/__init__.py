"""How alphas weigh candidates and become an architecture: a file a slot. A method is one choice in each slot."""
