"""What a ci is: reading poems, the templates of tunes, learning them, checking poems, holding sampling to them."""
