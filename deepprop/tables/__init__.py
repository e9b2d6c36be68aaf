"""Tables of columns: reading them, and the preparation that turns them into inputs of a network."""
