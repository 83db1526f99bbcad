"""From noise and captions to pictures, and from a student to a pipeline folder."""
