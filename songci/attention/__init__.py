"""What the attention heads do: in numbers, in pictures, and as a page that needs no network."""
