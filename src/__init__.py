"""Differentiable architecture search (DARTS): commands on top, plain torch below."""
