"""The training program: what it prepares, its steps, and what it watches."""
