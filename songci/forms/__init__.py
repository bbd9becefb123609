"""What a ci is: reading poems, the forms of tunes, learning and checking them, holding sampling to them."""
