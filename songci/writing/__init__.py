"""How a trained model writes, in numpy: its next character, the choice of one, and many of them."""
