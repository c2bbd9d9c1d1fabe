"""What is trained on: text, token shards, vocabularies."""
