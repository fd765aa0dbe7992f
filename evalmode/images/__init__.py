"""Images: which files of a folder are images, what their headers announce, and how their bytes become pixels."""
