"""How an answer is checked: in a notebook, in a terminal, by pytest."""
