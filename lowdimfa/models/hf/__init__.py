"""Networks of Hugging Face's package ``transformers`` as layers that can be cut into blocks."""
