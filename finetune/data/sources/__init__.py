"""Where pictures come from beside folders: archives, tables and the hub; several at once, each with a weight."""
