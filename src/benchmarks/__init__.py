"""Tables of what architectures reach once they are trained, so that a search can be judged without training them."""
