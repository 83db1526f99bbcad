"""One file per verb: composes the rooms below."""
