"""They watch a run and never change its arithmetic."""
