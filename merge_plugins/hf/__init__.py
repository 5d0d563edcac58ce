"""What only transformers knows of a model. Imports transformers: name the module you need."""
