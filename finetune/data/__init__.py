"""What the user has: pictures, captions, prepared datasets."""
