"""Sources of a trace other than our own forward: other tools' files, other engines."""
