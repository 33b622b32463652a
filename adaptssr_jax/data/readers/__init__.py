"""What the files of a data set say."""
