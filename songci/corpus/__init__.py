"""Where a text comes from, its vocabulary, and the windows that training cuts it into."""
