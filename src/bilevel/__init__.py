"""How it is searched: the virtual step and the hypergradient, over plain tensors."""
