"""The recipe: its schema, how it is read from a file and the command line, and the recipes that are shipped."""
