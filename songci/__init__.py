"""All that goes beyond the assignment's five scripts: a room for each idea, and a file for each further command."""
