"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# Time limits belong to `make bench`; here they would only make slow machines fail.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
