"""What a model file shows by itself: proofs and hints from its bytes and keys, without a forward."""
