"""Components and outlines of blocks of pixels."""
