"""The file: manifest, certificate, image statistics, and the model repository in which files are published."""
