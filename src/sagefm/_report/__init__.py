"""One page of what is known of a slide, for people without Python."""
